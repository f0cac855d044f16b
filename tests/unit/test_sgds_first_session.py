"""First-session adaptation: adapters trained once, under everything since."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_engine.cached_features import CachedExtract
from cl_engine.errors import CertificateViolation, Diverged
from cl_engine.features import extract
from cl_engine.generation import Generation, GenerationDirectory
from cl_engine.learners import create
from cl_engine.learners.base import Learner
from cl_engine.learners.registry import forget
from cl_engine.samples import TensorSamples
from cl_engine.sgds.certificate import certify
from cl_engine.sgds.content import read_content
from cl_engine.shared_adapters import (
    FirstSessionSettings,
    SharedAdapters,
    adapted_base,
    kept_from_adapters,
    train_shared_adapters,
)
from tests.support.sgds_sessions import QUICK, stream
from tests.support.small_backbone import images, small_backbone

BACKBONE = small_backbone()
SESSIONS = stream([0, 1], [2, 3], [4])
ADAPTED: dict[str, Any] = {
    "adapt_first_session": True,
    "adapter_blocks": 2,
    "feature_blocks": 3,
    "first_session_units": 2,
    "first_session_epochs": 2,
    "first_session_learning_rate": 0.01,
}
OPTIONS = {
    "ridge": ADAPTED,
    "ranpac": ADAPTED | {"projection": 32},
    "sgds": QUICK | ADAPTED,
}


def taught(method: str, learner: Learner | None = None) -> list[Generation]:
    """Run the sessions; return every generation."""
    learner = learner or create(method, BACKBONE, OPTIONS[method])
    made: list[Generation] = []
    for data in SESSIONS:
        made.append(learner.learn(data, made[-1] if made else None))
    return made


def test_the_features_are_those_of_the_network_with_adapters() -> None:
    """Layer by layer against one pass with the adapters in place; blocks in front of them stay frozen."""
    inputs, _ = images([0, 1], 5, seed=3)
    down, up = torch.randn(2, 3, 16), torch.randn(2, 16, 3) / 10
    base = extract(BACKBONE, TensorSamples(inputs, torch.zeros(10, dtype=torch.int64)), 3, 1)
    found = adapted_base(BACKBONE, base, 3, SharedAdapters(down, up))

    def adapter(index: int, tokens: torch.Tensor) -> torch.Tensor:
        if index == 0:
            return torch.zeros_like(tokens)
        return torch.relu(tokens @ down[index - 1].T) @ up[index - 1].T

    with torch.no_grad():
        outputs = BACKBONE.advance(BACKBONE.embed(inputs), 0, 3, adapter)
        expected = torch.cat([BACKBONE.layer_features(tokens) for tokens in outputs], dim=1)
    torch.testing.assert_close(found.features, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.features[:, :32], base.features[:, :32])
    assert not torch.allclose(found.features[:, 32:], base.features[:, 32:], atol=1e-2)
    assert adapted_base(BACKBONE, base, 3, None) is base
    half = adapted_base(BACKBONE, base, 3, SharedAdapters(down, up, share=0.5))
    torch.testing.assert_close(half.features, (base.features + expected) / 2, atol=1e-5, rtol=1e-5)


def test_a_scale_is_a_step_from_the_frozen_network_to_the_trained_one() -> None:
    """The adapters' output times the factor; what they were trained to is the same."""
    settings = FirstSessionSettings(**{k: v for k, v in ADAPTED.items() if k != "feature_blocks"})
    inputs, columns = images([0, 1], 8, seed=3)
    tokens = extract(BACKBONE, TensorSamples(inputs, columns), 3, 1).tokens
    assert tokens is not None
    whole, quarter = (
        train_shared_adapters(
            BACKBONE, tokens, columns, settings.model_copy(update={"first_session_scale": scale}), seed=0
        )
        for scale in (1.0, 0.25)
    )
    assert torch.equal(quarter.down, whole.down)
    torch.testing.assert_close(quarter.up, whole.up / 4)
    given = torch.randn(2, 5, 16)
    torch.testing.assert_close(
        quarter.adapter(BACKBONE)(1, given), whole.adapter(BACKBONE)(1, given) / 4, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("method", list(OPTIONS))
def test_adapters_are_trained_once_and_never_again(method: str) -> None:
    """Every later generation holds the first one's, bit for bit; another run gives the same digests."""
    made = taught(method)
    for name in ("first_session.down", "first_session.up", "first_session.share"):
        assert made[0].tensors[name].abs().max() > 0
        assert all(torch.equal(g.tensors[name], made[0].tensors[name]) for g in made)
    assert [g.digest for g in taught(method)] == [g.digest for g in made]
    frozen = create(method, BACKBONE, OPTIONS[method] | {"adapt_first_session": False})
    assert "first_session.up" not in frozen.learn(SESSIONS[0], None).tensors


@pytest.mark.parametrize("method", list(OPTIONS))
def test_a_generation_from_disk_answers_the_same_from_inputs_and_from_the_frozen_pass(
    method: str, tmp_path: Path
) -> None:
    """One pass with the adapters in place, and the frozen pass adapted afterwards, agree."""
    learner = create(method, BACKBONE, OPTIONS[method])
    generation = taught(method, learner)[-1]
    directory = GenerationDirectory(tmp_path)
    loaded = directory.load(directory.write(generation))
    inputs, labels = images([0, 1, 2, 3, 4], 4, seed=9)
    answers = learner.servable(generation).predict(inputs)
    again: Any = learner.servable(loaded)
    assert torch.equal(again.predict(inputs).scores, answers.scores)
    base = extract(BACKBONE, TensorSamples(inputs, labels), 3, 1)
    torch.testing.assert_close(again.predict_from(base).scores, answers.scores, atol=1e-4, rtol=1e-4)
    assert (answers.class_ids == labels).double().mean() > 0.6


@pytest.mark.parametrize("method", list(OPTIONS))
def test_a_class_can_still_be_forgotten(method: str) -> None:
    """Its sums are subtracted as they were added, under the adapters; those stay."""
    data = SESSIONS[0]
    rows = (data.train.labels == 1).nonzero().squeeze(1).tolist()
    gone = TensorSamples(data.train.load(rows), data.train.labels[rows], [data.train.ids[r] for r in rows])
    made = taught(method)[1]
    after = forget(BACKBONE, made, 1, gone)
    assert after.class_ids == (0, 2, 3)
    assert after.certificate["residual"] < 1e-6
    assert torch.equal(after.tensors["first_session.up"], made.tensors["first_session.up"])


def test_all_methods_stand_on_the_same_adapters() -> None:
    """With the same settings and seed, so that a comparison of methods compares what they add."""
    first = {method: create(method, BACKBONE, OPTIONS[method]).learn(SESSIONS[0], None) for method in OPTIONS}
    for name in ("first_session.down", "first_session.up"):
        assert torch.equal(first["ridge"].tensors[name], first["ranpac"].tensors[name])
        assert torch.equal(first["ridge"].tensors[name], first["sgds"].tensors[name])


def test_the_certificate_covers_what_is_under_the_units() -> None:
    """One number of the first session's adapters, and no session answers as it did."""
    one, two, _ = taught("sgds")
    before, after = read_content(one), read_content(two)
    assert certify(before, after)["verified_subspaces"] == ["0"]
    assert after.shared is not None
    up = after.shared.up.clone()
    up[0, 0, 0] += 1
    with pytest.raises(CertificateViolation, match="subspace 0 is not what it was"):
        certify(before, replace(after, shared=replace(after.shared, up=up)))


def test_cached_features_change_nothing() -> None:
    """The adapters are trained on the cached tokens as on those computed anew."""
    cache = CachedExtract(BACKBONE, 3, 1)
    held = SESSIONS[0].holdout
    # A holdout has ids of its own: the cache goes by id.
    data = replace(
        SESSIONS[0],
        holdout=TensorSamples(
            held.load(range(len(held.labels))), held.labels, [f"held-{i}" for i in range(len(held.labels))]
        ),
    )
    digests = {create("ridge", BACKBONE, ADAPTED, e).learn(data, None).digest for e in (cache, extract)}
    assert len(digests) == 1


@pytest.mark.parametrize("method", list(OPTIONS))
def test_a_first_session_of_one_class_adapts_nothing(method: str) -> None:
    """There is nothing to tell apart: the network stays as it is, and later sessions build on that."""
    learner = create(method, BACKBONE, OPTIONS[method])
    first, second = stream([0], [1, 2])
    generation = learner.learn(second, learner.learn(first, None))
    assert "first_session.up" not in generation.tensors
    assert generation.class_ids == (0, 1, 2)


def test_a_loss_that_is_not_finite_names_the_setting() -> None:
    """A rate that cannot work."""
    settings = FirstSessionSettings(**{k: v for k, v in ADAPTED.items() if k != "feature_blocks"})
    tokens = torch.full((8, 5, 16), torch.nan)
    with pytest.raises(Diverged, match="first_session_learning_rate"):
        train_shared_adapters(BACKBONE, tokens, torch.arange(8) % 2, settings, seed=0)


def test_a_fifth_is_kept_from_the_adapters_whatever_the_order() -> None:
    """By id alone: the same samples are kept in another session's company."""
    ids = [f"sample-{i}" for i in range(2000)]
    kept = kept_from_adapters(ids)
    assert 0.17 < kept.double().mean() < 0.23
    assert torch.equal(kept_from_adapters(ids[::-1]), kept.flip(0))
