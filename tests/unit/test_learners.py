"""The baselines, and the registry that finds a method by its name."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from cl_engine import calibration
from cl_engine.backbones import FrozenModel
from cl_engine.errors import Diverged, UnsupportedGeneration
from cl_engine.generation import Generation, GenerationDirectory
from cl_engine.learners import Learner, create, default_options, methods, servable
from cl_engine.learners.fine_tuning import FineTuningLearner, FineTuningSettings
from cl_engine.learners.nearest_mean import NearestMeanLearner, NearestMeanSettings
from cl_engine.learners.registry import check_options
from cl_engine.samples import SessionData, TensorSamples
from tests.support.made_generations import made_generation
from tests.support.sgds_sessions import QUICK, stream
from tests.support.small_backbone import images, small_backbone

BACKBONE = small_backbone()
THREE = stream([0, 1], [2, 3], [4, 5])
OPTIONS: dict[str, dict[str, Any]] = {
    "sgds": QUICK,
    "ncm": {"feature_blocks": 2},
    "finetune": {"adapter_blocks": 2, "units": 4, "epochs": 4, "learning_rate": 0.02, "batch_size": 16},
}


def learn_all(learner: Learner, sessions: list[SessionData]) -> list[Generation]:
    """Run sessions one after the other; return every generation."""
    generations: list[Generation] = []
    for data in sessions:
        generations.append(learner.learn(data, generations[-1] if generations else None))
    return generations


def correct(generation: Generation, classes: list[int]) -> float:
    """Return the share of right answers on some classes."""
    inputs, labels = images(classes, 8, seed=900)
    return float((servable(BACKBONE, generation).predict(inputs).class_ids == labels).double().mean())


@pytest.mark.parametrize("method", OPTIONS)
def test_a_method_is_found_by_name_and_its_generations_are_served(tmp_path: Path, method: str) -> None:
    """Deterministic, read back from disk as it was, and served with the settings it was made with."""
    assert method in methods()
    learner = create(method, BACKBONE, OPTIONS[method])
    generations = learn_all(learner, THREE)
    assert generations[-1].method == learner.method == method
    assert [g.digest for g in learn_all(learner, THREE)] == [g.digest for g in generations]
    directory = GenerationDirectory(tmp_path)
    loaded = servable(BACKBONE, directory.load(directory.write(generations[-1])))
    inputs, _ = images(range(6), 3, seed=4)
    prediction = loaded.predict(inputs)
    assert torch.equal(prediction.scores, learner.servable(generations[-1]).predict(inputs).scores)
    assert (loaded.digest, loaded.class_ids) == (generations[-1].digest, tuple(range(6)))
    assert loaded.labels == {c: f"class {c}" for c in range(6)}
    assert loaded.nbytes() > 0
    assert prediction.scores.shape == (18, 6)
    assert ((prediction.unknown >= 0) & (prediction.unknown <= 1)).all()


def test_class_means_forget_nothing() -> None:
    """Every class is right after three sessions, and a prototype is the same at the bit from the start."""
    generations = learn_all(create("ncm", BACKBONE, OPTIONS["ncm"]), THREE)
    assert correct(generations[-1], list(range(6))) == 1
    assert torch.equal(generations[-1].tensors["prototypes"][:2], generations[0].tensors["prototypes"])


def test_a_refresh_moves_the_class_mean_and_keeps_the_calibration() -> None:
    """A session without new classes has no holdout of its own to calibrate on."""
    learner = create("ncm", BACKBONE, OPTIONS["ncm"])
    before = learner.learn(THREE[0], None)
    assert float(before.tensors["sharpness"]) != calibration.DEFAULT_SHARPNESS
    inputs, labels = images([1], 5, seed=3)
    more = TensorSamples(inputs, labels, [f"more-{i}" for i in range(5)])
    after = learner.learn(replace(THREE[0], session=1, new_classes=(), train=more), before)
    assert after.learner_state["count"].tolist() == [24, 29]
    assert torch.equal(after.tensors["prototypes"][0], before.tensors["prototypes"][0])
    assert not torch.equal(after.tensors["prototypes"][1], before.tensors["prototypes"][1])
    assert torch.equal(after.tensors["sharpness"], before.tensors["sharpness"])


def test_naive_fine_tuning_learns_the_last_session_and_forgets_the_first() -> None:
    """It is the lower bound: right on what it has just seen, wrong on what it saw before."""
    learner = create("finetune", BACKBONE, OPTIONS["finetune"])
    generations = learn_all(learner, THREE)
    assert correct(generations[0], [0, 1]) == 1
    assert correct(generations[-1], [4, 5]) == 1
    assert correct(generations[-1], [0, 1]) < 0.5
    assert not torch.equal(generations[-1].tensors["down"], generations[0].tensors["down"])


def test_fine_tuning_that_diverges_says_so() -> None:
    """The error names the epoch and the setting to lower."""
    learner = FineTuningLearner(
        BACKBONE, FineTuningSettings(adapter_blocks=1, learning_rate=math.inf, batch_size=8)
    )
    with pytest.raises(Diverged, match="in epoch 0: lower learning_rate"):
        learner.learn(THREE[0], None)


@pytest.mark.parametrize("method", ["ncm", "finetune"])
def test_a_baseline_builds_on_its_own_generations_only(method: str) -> None:
    """Not on another backbone's, another method's, or one of other shapes."""
    learner = create(method, BACKBONE, OPTIONS[method])
    generation = learner.learn(THREE[0], None)
    stranger = create(method, small_backbone("stranger"), OPTIONS[method])
    with pytest.raises(UnsupportedGeneration, match="stranger"):
        stranger.learn(THREE[1], generation)
    with pytest.raises(UnsupportedGeneration, match="stranger"):
        stranger.servable(generation)
    with pytest.raises(UnsupportedGeneration, match="sgds on"):
        learner.learn(THREE[1], replace(generation, method="sgds"))
    blocks = "feature_blocks" if method == "ncm" else "adapter_blocks"
    with pytest.raises(ValueError, match=f"{blocks} is 1, .* made with 2"):
        create(method, BACKBONE, OPTIONS[method] | {blocks: 1}).learn(THREE[1], generation)


def test_blocks_the_backbone_does_not_have_are_refused() -> None:
    """Both baselines name the setting."""
    with pytest.raises(ValueError, match=r"adapter_blocks \(4\) is above the backbone's 3 blocks"):
        FineTuningLearner(BACKBONE, FineTuningSettings(adapter_blocks=4))
    with pytest.raises(ValueError, match="feature_blocks must be 1 to 3, is 4"):
        NearestMeanLearner(BACKBONE, NearestMeanSettings(feature_blocks=4)).learn(THREE[0], None)


def test_unknown_methods_and_options_are_named() -> None:
    """All wrong options at once, each with what is wrong."""
    with pytest.raises(ValueError, match="method 'magic' is not one of sgds"):
        default_options("magic")
    with pytest.raises(ValueError, match="'magic'"):
        create("magic", BACKBONE)
    with pytest.raises(ValueError, match=r"density: .*less than or equal to 1.*; speed: Extra inputs"):
        check_options("sgds", {"density": 2, "speed": 11})
    with pytest.raises(ValueError, match="not even one session fits"):
        check_options("sgds", {"units_per_session": 9, "max_units": 8})


def test_default_options_are_valid_options() -> None:
    """What is shown as the defaults can be given back."""
    for method in methods():
        assert check_options(method, default_options(method)).model_dump() == default_options(method)


def test_a_backbone_without_blocks_is_refused() -> None:
    """A convolutional network has no blocks to put adapters in."""
    network = timm.create_model("resnet10t", num_classes=0)
    model = FrozenModel("resnet", network, 32, (0.5,) * 3, (0.5,) * 3, torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="backbone resnet is none"):
        create("ncm", model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method 'magic' is not one of"),
        ({"backbone": "other@16px-0"}, "belongs to backbone other@16px-0"),
        ({"settings": {"from_the_future": 1}}, "from_the_future"),
        (
            {"settings": {"adapter_blocks": 12, "feature_blocks": 2}},
            "adapter_blocks is 12, .* has 3 last blocks",
        ),
    ],
)
def test_a_generation_this_release_cannot_serve_is_unsupported(changes: dict[str, Any], message: str) -> None:
    """Whatever is the matter with it, the caller need not tell kinds of error apart."""
    with pytest.raises(UnsupportedGeneration, match=message):
        servable(BACKBONE, made_generation(**changes))


def test_any_module_can_be_imported_first() -> None:
    """A notebook may start with a learner, though the registry knows all learners and they its contract."""
    names = ["sgds", "learners", "learners.fine_tuning", "learners.table", "supermask.learner"]
    program = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    for loaded in [m for m in sys.modules if m.startswith('cl_engine')]:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module('cl_engine.' + name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
