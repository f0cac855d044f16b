"""Each setting of SGDS: it learns, reads back, and does what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_engine.generation import GenerationDirectory
from cl_engine.sgds import SGDSLearner, SGDSSettings
from cl_engine.sgds.strategy import Choice, Strategy, semantic_strategy
from tests.support.sgds_sessions import QUICK, learn_all, quick_learner, stream
from tests.support.small_backbone import images, small_backbone

BACKBONE = small_backbone()
THREE = stream([0, 1], [2, 3], [4, 5])


@pytest.mark.parametrize(
    "changes",
    [
        {"inference": "none"},
        {"inference": "kwta"},
        {"mask_scope": "class"},
        {"mask_scope": "class", "inference": "kwta"},
        {"routing": "prototype"},
        {"head": "cosine"},
        {"head": "cosine", "routing": "prototype", "mask_scope": "class"},
        {"borrow": False},
        {"count_normalised": False, "temperature": 1.0},
        {"compact_epochs": 0},
        {"density": 1.0, "feature_blocks": 3},
        {"adapter_blocks": 3, "feature_blocks": 1},
        {"mask": "random"},
        {"mask": "none"},
        {"decision": "reuse"},
        {"decision": "allocate"},
    ],
    ids=str,
)
def test_every_setting_learns_and_reads_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    """What is loaded from disk answers as what was learnt, and as rows one by one."""
    learner = quick_learner(BACKBONE, **changes)
    generation = learn_all(learner, THREE[:2])[-1]
    directory = GenerationDirectory(tmp_path)
    loaded = directory.load(directory.write(generation), with_learner_state=True)
    inputs, labels = images([0, 1, 2, 3], 4, seed=9)
    answers = learner.servable(generation).predict(inputs)
    assert torch.equal(learner.servable(loaded).predict(inputs).scores, answers.scores)
    assert (answers.class_ids == labels).double().mean() > 0.6
    single = torch.cat([learner.servable(loaded).predict(row[None]).scores for row in inputs])
    torch.testing.assert_close(single, answers.scores, atol=1e-4, rtol=1e-4)
    assert learner.learn(THREE[2], loaded).digest == learner.learn(THREE[2], generation).digest


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 0.5},
        {"inference": "none"},
        {"units_per_session": 3},
        {"feature_blocks": 1},
        {"head": "cosine"},
    ],
    ids=str,
)
def test_settings_that_earlier_sessions_answer_with_cannot_change(changes: dict[str, Any]) -> None:
    """A generation has one of each, so a change would alter what earlier sessions answer."""
    previous = quick_learner(BACKBONE).learn(THREE[0], None)
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is .* or start a new stream"):
        quick_learner(BACKBONE, **changes).learn(THREE[1], previous)


def test_how_a_session_is_trained_may_change() -> None:
    """Epochs, rates, borrowing and routing are each session's own."""
    previous = quick_learner(BACKBONE).learn(THREE[0], None)
    other = quick_learner(BACKBONE, compact_epochs=1, learning_rate=0.001, borrow=False, routing="prototype")
    assert other.learn(THREE[1], previous).certificate["verified_subspaces"] == ["0"]


@pytest.mark.parametrize("name", ["adapter_blocks", "feature_blocks"])
def test_more_blocks_than_the_backbone_has_are_refused(name: str) -> None:
    """The error names the setting and the depth."""
    with pytest.raises(ValueError, match=rf"{name} \(4\) is above the backbone's 3 blocks"):
        quick_learner(BACKBONE, **{name: 4})


def test_decisions_can_be_fixed_for_a_whole_stream() -> None:
    """The first session has nothing to reuse whatever is set; later ones do as they are told."""
    for decision, later, borrowed in (("reuse", "reuse", 0), ("allocate", "allocate", None)):
        one, two = learn_all(quick_learner(BACKBONE, decision=decision), THREE[:2])
        assert set(one.evaluation["strategy"]["choices"].values()) == {"allocate"}
        assert set(two.evaluation["strategy"]["choices"].values()) == {later}
        assert two.evaluation["strategy"]["borrowed"] == borrowed


def test_masks_keep_as_many_activations_as_they_are_told_to() -> None:
    """A quarter of 16 by the counters and at random, all without masks; random ones follow the seed."""
    kept = {}
    for mask in ("counters", "random", "none"):
        generation = quick_learner(BACKBONE, mask=mask).learn(THREE[0], None)
        kept[mask] = generation.masks["input.class"]
        assert set(kept[mask].sum(dim=2).flatten().tolist()) == {16 if mask == "none" else 4}
    again = quick_learner(BACKBONE, mask="random").learn(THREE[0], None)
    assert torch.equal(again.masks["input.class"], kept["random"])
    assert not torch.equal(kept["counters"], kept["random"])


def test_shared_units_are_trained_by_every_session_and_promise_nothing() -> None:
    """The reconstruction as first written: earlier sessions answer with what later ones made of theirs."""
    learner = quick_learner(BACKBONE, exclusive_units=False, borrow=False, max_units=2)
    generations = learn_all(learner, THREE)
    units = generations[-1].tensors["down"]
    assert torch.equal(units[0], units[2])
    assert not torch.equal(units[0], generations[0].tensors["down"][0])
    assert generations[-1].certificate["promise"].startswith("none")
    with pytest.raises(ValueError, match="borrow needs exclusive_units"):
        SGDSSettings(exclusive_units=False)


def test_an_ablation_can_decide_in_place_of_the_semantics() -> None:
    """What is passed in decides for every class of every session."""
    asked = []

    def always_reuse(
        new_prototypes: Tensor, old_prototypes: Tensor, *, temperature: float, count_normalised: bool
    ) -> Strategy:
        asked.append(len(old_prototypes))
        found = semantic_strategy(
            new_prototypes, old_prototypes, temperature=temperature, count_normalised=count_normalised
        )
        return replace(found, choices=(Choice.REUSE,) * len(found.choices))

    learner = SGDSLearner(BACKBONE, SGDSSettings(**QUICK), decide=always_reuse)
    last = learn_all(learner, THREE[:2])[-1]
    assert asked == [0, 2]
    assert last.evaluation["strategy"]["borrowed"] == 0


def test_a_setting_that_is_newer_than_a_generation_had_its_default() -> None:
    """Sessions go on where the default is still set, and are refused where it is not."""
    made = quick_learner(BACKBONE).learn(THREE[0], None)
    older = replace(made, settings={k: v for k, v in made.settings.items() if k != "mask"})
    assert quick_learner(BACKBONE).learn(THREE[1], older).certificate["verified_subspaces"] == ["0"]
    with pytest.raises(ValueError, match=r"mask is 'none', .* was made with 'counters'"):
        quick_learner(BACKBONE, mask="none").learn(THREE[1], older)
