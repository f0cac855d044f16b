"""Exemplars: which samples are kept, how they are replayed, and that they go with their class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cl_engine.features import BaseFeatures
from cl_engine.generation import GenerationDirectory
from cl_engine.learners.registry import forget
from cl_engine.samples import TensorSamples
from cl_engine.sgds.content import read_learner_state
from cl_engine.sgds.exemplars import Exemplars
from tests.support.sgds_sessions import learn_all, quick_learner, stream
from tests.support.small_backbone import images, small_backbone

BACKBONE = small_backbone()
THREE = stream([0, 1], [2, 3], [4, 5])
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small products are slower on several threads."""
    torch.set_num_threads(1)


def made(columns: list[int], unseen: list[int], per_class: int) -> Exemplars:
    """Choose among samples whose one feature is their position."""
    count = len(columns)
    positions = torch.arange(count, dtype=torch.float32)
    mask = torch.zeros(count, dtype=torch.bool)
    mask[unseen] = True
    base = BaseFeatures(positions[:, None], positions[:, None, None])
    return Exemplars.chosen(base, torch.tensor(columns), [str(i) for i in range(count)], mask, per_class)


def test_samples_that_nothing_was_trained_on_judge() -> None:
    """Of class 0 the samples 0 to 4, of which 3 is unseen; class 1 has none and lends a trained one."""
    found = made([0, 0, 0, 0, 0, 1, 1, 1], unseen=[3], per_class=2)
    assert sorted(found.columns.tolist()) == [0, 0, 1, 1]
    judging = found.base.features[found.judging].flatten().tolist()
    assert 3.0 in judging
    assert sorted(found.columns[found.judging].tolist()) == [0, 1]
    assert not made([0, 0], unseen=[0], per_class=1).judging.any(), "a single one is replayed"


def test_drawn_exemplars_are_few_and_never_judge() -> None:
    """At most as many as asked for, the same for a seed, none that is held back."""
    found = made([0] * 6 + [1] * 6, unseen=[], per_class=4)
    drawn = found.drawn(3, seed=1)
    assert len(drawn.columns) == 3
    assert not drawn.judging.any()
    assert torch.equal(found.drawn(3, seed=1).base.features, drawn.base.features)
    assert len(found.drawn(100, seed=1).columns) == 6


def test_dropping_a_class_renumbers_the_ones_behind_it() -> None:
    """Columns 0, 1, 2 without 1 are 0 and 1; the samples of 2 are still its own."""
    found = made([0, 1, 2, 2], unseen=[], per_class=2).without(1)
    assert sorted(found.columns.tolist()) == [0, 1, 1]
    assert sorted(found.base.features[found.columns == 1].flatten().tolist()) == [2.0, 3.0]


def test_every_class_keeps_its_exemplars_and_digests_repeat() -> None:
    """Three a class after three sessions; another run gives the same generations."""
    learner = quick_learner(BACKBONE, exemplars_per_class=3)
    generations = learn_all(learner, THREE)
    kept = read_learner_state(generations[-1].learner_state, CPU).exemplars
    assert kept is not None
    assert torch.bincount(kept.columns).tolist() == [3] * 6
    assert kept.judging.sum() == 6
    again = learn_all(quick_learner(BACKBONE, exemplars_per_class=3), THREE)
    assert [g.digest for g in again] == [g.digest for g in generations]
    assert generations[-1].certificate["verified_subspaces"] == ["0", "1"]
    assert generations[-1].digest != learn_all(quick_learner(BACKBONE), THREE)[-1].digest


def test_a_generation_from_disk_is_built_on_and_answers_alike(tmp_path: Path) -> None:
    """Stored tokens survive the disk; the answer of a batch is that of its rows."""
    learner = quick_learner(BACKBONE, exemplars_per_class=2)
    generation = learn_all(learner, THREE[:2])[-1]
    directory = GenerationDirectory(tmp_path)
    loaded = directory.load(directory.write(generation), with_learner_state=True)
    assert learner.learn(THREE[2], loaded).digest == learner.learn(THREE[2], generation).digest
    inputs, labels = images([0, 1, 2, 3], 4, seed=9)
    servable = learner.servable(loaded)
    answers = servable.predict(inputs)
    assert (answers.class_ids == labels).double().mean() > 0.6
    single = torch.cat([servable.predict(row[None]).scores for row in inputs])
    torch.testing.assert_close(single, answers.scores, atol=1e-4, rtol=1e-4)


def test_forgetting_a_class_takes_its_exemplars_along() -> None:
    """Nothing of the class is left in what later sessions would replay."""
    data = THREE[0]
    rows = (data.train.labels == 0).nonzero().squeeze(1).tolist()
    gone = TensorSamples(data.train.load(rows), data.train.labels[rows], [data.train.ids[r] for r in rows])
    learner = quick_learner(BACKBONE, exemplars_per_class=2)
    before = learn_all(learner, THREE[:2])[-1]
    after = forget(BACKBONE, before, 0, gone)
    old, new = (read_learner_state(g.learner_state, CPU).exemplars for g in (before, after))
    assert old is not None
    assert new is not None
    assert torch.equal(new.base.features, old.base.features[old.columns != 0])
    assert torch.bincount(new.columns).tolist() == [2, 2, 2]
    assert learner.learn(THREE[2], after).class_ids == (1, 2, 3, 4, 5)


def test_whether_exemplars_are_kept_cannot_change_in_a_stream() -> None:
    """Own heads fitted with and without them answer in different ways."""
    previous = quick_learner(BACKBONE).learn(THREE[0], None)
    with pytest.raises(ValueError, match="exemplars_per_class is 2"):
        quick_learner(BACKBONE, exemplars_per_class=2).learn(THREE[1], previous)


def test_a_session_of_one_class_is_weighed_against_exemplars() -> None:
    """Alone it has no order to change; against stored samples its own head says whether a sample is its."""
    learner = quick_learner(BACKBONE, exemplars_per_class=3)
    sessions = stream([0, 1], [2])
    generation = learner.learn(sessions[1], learner.learn(sessions[0], None))
    head = generation.tensors["subspace_head"]
    assert head[:, 2].abs().max() > 0
