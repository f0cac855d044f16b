"""TinyViT block by block: the same numbers as timm's own forward, and every method on top of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from cl_engine.backbones.blockwise import BlockwiseBackbone, adaptable_blocks, feature_width
from cl_engine.features import base_pass, extract
from cl_engine.learners import create, servable
from cl_engine.learners.registry import forget
from cl_engine.samples import SessionData, TensorSamples
from daemon.backbone import check_learners
from daemon.errors import ConfigError
from daemon.settings import Settings
from tests.support.small_backbone import session_data, small_backbone
from tests.support.small_tiny_vit import SIZE, small_tiny_vit

OPTIONS: dict[str, dict[str, Any]] = {
    "ridge": {"feature_blocks": 3},
    "ranpac": {"feature_blocks": 3, "projection": 64},
    "slda": {"feature_blocks": 3},
    "ncm": {"feature_blocks": 2},
    "exssnet": {"feature_blocks": 3, "hidden": [32], "outputs": 4, "epochs": 4, "density": 0.3},
    "supsup": {"feature_blocks": 3, "hidden": [32], "outputs": 4, "epochs": 4, "density": 0.3},
    "sgds": {
        "feature_blocks": 3,
        "adapter_blocks": 2,
        "units_per_session": 4,
        "explore_epochs": 1,
        "compact_epochs": 1,
    },
    "finetune": {"adapter_blocks": 2, "epochs": 2},
}


def enlarged(samples: TensorSamples) -> TensorSamples:
    """Return the samples at this backbone's size."""
    larger = interpolate(samples.inputs.float(), size=(SIZE, SIZE)).to(torch.uint8)
    return TensorSamples(larger, samples.labels, list(samples.ids))


def session(number: int, new: list[int], known: list[int]) -> SessionData:
    """Put together a session of images of this backbone's size."""
    data = session_data(number, new, known, per_class=10)
    assert isinstance(data.train, TensorSamples)
    assert isinstance(data.holdout, TensorSamples)
    return replace(data, train=enlarged(data.train), holdout=enlarged(data.holdout))


def test_block_by_block_it_is_the_model_itself() -> None:
    """Left and entered anywhere, the last tokens are those of timm's forward; widths are the stages'."""
    backbone = small_tiny_vit()
    images = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    with torch.no_grad():
        whole = backbone.model.forward_features(backbone.normalise(images)).flatten(2).transpose(1, 2)
        steps = list(backbone.advance(backbone.embed(images), 0, backbone.depth))
        for start, tokens in enumerate([backbone.embed(images), *steps[:-1]]):
            torch.testing.assert_close(backbone.last(tokens, start), whole)
        summary = base_pass(backbone, images, 3, None).features
    assert isinstance(backbone, BlockwiseBackbone)
    assert [tokens.shape[2] for tokens in steps] == list(backbone.widths) == [16, 24, 24]
    assert (feature_width(backbone, 2), feature_width(backbone, 3)) == (96, 128)
    assert summary.shape == (3, 128)
    assert (adaptable_blocks(backbone), adaptable_blocks(small_backbone())) == (2, 3)
    torch.testing.assert_close(backbone.features(images), summary[:, -48:])


def test_an_adapter_is_added_in_parallel_to_the_mlp() -> None:
    """It gets the MLP's normalised input, and one that puts out zeros changes nothing."""
    backbone = small_tiny_vit()
    tokens = backbone.embed(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8))
    seen = []

    def nothing(index: int, inputs: torch.Tensor) -> torch.Tensor:
        seen.append((index, inputs.shape[2], bool(inputs.mean(dim=2).abs().max() < 1e-5)))
        return torch.zeros_like(inputs)

    assert torch.equal(backbone.last(tokens, 0, nothing), backbone.last(tokens, 0))
    assert seen == [(0, 16, True), (1, 24, True), (2, 24, True)]


def test_it_can_be_trained_through_after_it_has_served() -> None:
    """What the model keeps from its first use must not be bound to inference mode."""
    backbone = small_tiny_vit()
    images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    backbone.features(images)
    change = torch.zeros(24, requires_grad=True)
    with torch.no_grad():
        *_, tokens = backbone.advance(backbone.embed(images), 0, 1)
    output = backbone.last(tokens, 1, lambda _, inputs: inputs * 0 + change)
    output.sum().backward()  # type: ignore[no-untyped-call]
    assert change.grad is not None
    assert change.grad.abs().sum() > 0


@pytest.mark.parametrize("method", list(OPTIONS))
def test_every_method_learns_on_it(method: str) -> None:
    """Two sessions with features of several widths; the classes are recognised."""
    backbone = small_tiny_vit()
    learner = create(method, backbone, OPTIONS[method])
    first = learner.learn(session(0, [0, 1], []), None)
    second = learner.learn(session(1, [2, 3], [0, 1]), first)
    assert second.certificate["holds"]
    holdout = session(1, [2, 3], [0, 1]).holdout
    answers = servable(backbone, second).predict(holdout.load(range(len(holdout.labels))))
    right = (answers.class_ids == holdout.labels).float().mean()
    if method != "finetune":
        # Naive fine-tuning forgets the first two classes.
        assert right > 0.6


def test_a_class_is_forgotten_on_it() -> None:
    """Its features, of several widths, are computed again and subtracted."""
    backbone = small_tiny_vit()
    data = session(0, [0, 1, 2], [])
    taught = create("ridge", backbone, OPTIONS["ridge"]).learn(data, None)
    rows = (data.train.labels == 1).nonzero().squeeze(1).tolist()
    ids = [data.train.ids[row] for row in rows]
    samples = TensorSamples(data.train.load(rows), data.train.labels[rows], ids)
    assert forget(backbone, taught, 1, samples).certificate["residual"] < 1e-5


def test_adapters_beyond_its_last_stage_are_refused() -> None:
    """The blocks before have tokens of another width; features may come from any block."""
    with pytest.raises(ValueError, match=r"adapter_blocks is 3, .* has 2 last blocks of one width"):
        create("sgds", small_tiny_vit(), {"adapter_blocks": 3, "feature_blocks": 2})
    with pytest.raises(ValueError, match=r"feature_blocks is 4, .* set feature_blocks to 3"):
        create("ridge", small_tiny_vit(), {"feature_blocks": 4})
    create("ridge", small_tiny_vit(), {"feature_blocks": 3})


def test_a_daemon_refuses_such_settings_before_its_first_session() -> None:
    """Each stream's method is tried on the backbone at the start, and each mistake is named."""
    learners = {
        "good": {"learner": {"method": "ridge", "options": {"feature_blocks": 3}}},
        "bad": {"learner": {"method": "sgds", "options": {"adapter_blocks": 3, "feature_blocks": 2}}},
        "worse": {"learner": {"method": "ncm", "options": {"feature_blocks": 9}}},
    }
    with pytest.raises(ConfigError) as refused:
        check_learners(Settings.model_validate({"streams": learners}), small_tiny_vit())
    assert [line.split(":")[0] for line in str(refused.value).splitlines()] == [
        "streams.bad.learner",
        "streams.worse.learner",
    ]


def test_no_samples_have_features_of_the_right_length() -> None:
    """An empty holdout must fit the others."""
    backbone = small_tiny_vit()
    empty = TensorSamples(torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    assert extract(backbone, empty, 3).features.shape == (0, 128)
