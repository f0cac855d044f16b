"""Exemplars: which samples are kept, how they are replayed, and that they go with their class."""

from __future__ import annotations

from pathlib import Path

import torch

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


def made(columns: list[int], per_class: int) -> Exemplars:
    """Choose among samples whose one number is their position."""
    positions = torch.arange(len(columns), dtype=torch.float32)[:, None, None]
    ids = [str(i) for i in range(len(columns))]
    return Exemplars.chosen(positions, torch.tensor(columns), ids, per_class)


def test_so_many_of_each_class_are_chosen_or_all_there_are() -> None:
    """Of five, three and one sample: two, two and one, each still of its class."""
    columns = [0, 0, 0, 0, 0, 1, 1, 1, 2]
    found = made(columns, per_class=2)
    assert torch.bincount(found.columns).tolist() == [2, 2, 1]
    assert [columns[int(i)] for i in found.tokens.flatten()] == found.columns.tolist()
    assert torch.equal(made(columns, per_class=2).tokens, found.tokens)


def test_drawn_exemplars_are_few_and_follow_the_seed() -> None:
    """At most as many as asked for; the same for a seed, others for another."""
    found = made([0] * 6 + [1] * 6, per_class=6)
    drawn = found.drawn(3, seed=1)
    assert len(drawn.columns) == 3
    assert torch.equal(found.drawn(3, seed=1).tokens, drawn.tokens)
    assert not torch.equal(found.drawn(3, seed=2).tokens, drawn.tokens)
    assert len(found.drawn(100, seed=1).columns) == 12


def test_dropping_a_class_renumbers_the_ones_behind_it() -> None:
    """Columns 0, 1, 2 without 1 are 0 and 1; the samples of 2 are still its own."""
    found = made([0, 1, 2, 2], per_class=2).without(1)
    assert sorted(found.columns.tolist()) == [0, 1, 1]
    assert sorted(found.tokens[found.columns == 1].flatten().tolist()) == [2.0, 3.0]


def test_every_class_keeps_its_exemplars_and_digests_repeat() -> None:
    """Three a class after three sessions; another run gives the same generations."""
    learner = quick_learner(BACKBONE, exemplars_per_class=3)
    generations = learn_all(learner, THREE)
    kept = read_learner_state(generations[-1].learner_state, CPU).exemplars
    assert kept is not None
    assert torch.bincount(kept.columns).tolist() == [3] * 6
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
    assert torch.equal(new.tokens, old.tokens[old.columns != 0])
    assert torch.bincount(new.columns).tolist() == [2, 2, 2]
    assert learner.learn(THREE[2], after).class_ids == (1, 2, 3, 4, 5)


def test_replay_changes_the_units_and_can_be_switched_on_and_off() -> None:
    """From the second session on there is something to replay; without the setting nothing is kept."""
    plain, replaying = (quick_learner(BACKBONE, exemplars_per_class=n) for n in (0, 3))
    first, first_kept = plain.learn(THREE[0], None), replaying.learn(THREE[0], None)
    assert torch.equal(first.tensors["down"], first_kept.tensors["down"])
    second, second_kept = plain.learn(THREE[1], first), replaying.learn(THREE[1], first_kept)
    assert not torch.equal(second.tensors["down"][1], second_kept.tensors["down"][1])
    stopped = plain.learn(THREE[1], first_kept)
    assert torch.equal(stopped.tensors["down"], second.tensors["down"])
    assert read_learner_state(stopped.learner_state, CPU).exemplars is None
    started = replaying.learn(THREE[1], first)
    kept = read_learner_state(started.learner_state, CPU).exemplars
    assert kept is not None
    assert sorted(set(kept.columns.tolist())) == [2, 3]
