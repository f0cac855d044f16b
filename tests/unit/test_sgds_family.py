"""Families of SGDS sessions: who joins, what its head is, what is promised, what forgetting leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cl_engine.errors import CertificateViolation
from cl_engine.generation import Generation
from cl_engine.heads import RidgeStatistics
from cl_engine.heads.ridge import fold_of
from cl_engine.samples import SessionData, TensorSamples
from cl_engine.sgds import SGDSSettings
from cl_engine.sgds.answer import AnswerNetwork
from cl_engine.sgds.certificate import certify, certify_forgetting
from cl_engine.sgds.content import read_content, read_learner_state
from cl_engine.sgds.family import family_of, kinship, subspace_features
from tests.support.sgds_sessions import QUICK, learn_all, quick_learner, stream
from tests.support.small_backbone import images, small_backbone

BACKBONE = small_backbone()
CPU = torch.device("cpu")
THREE = stream([0, 1], [2, 3], [4, 5])
# Every kinship is above the one and below the other.
JOIN = {"families": 4, "kinship": 1e-9}
APART = {"families": 4, "kinship": 1e9}


def learn(sessions: Sequence[SessionData], **changes: object) -> list[Generation]:
    """Run sessions with some settings replaced."""
    return learn_all(quick_learner(BACKBONE, **changes), sessions)


def at_angles(*degrees: float) -> Tensor:
    """Return unit vectors in the plane."""
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_kinship_by_hand() -> None:
    """At temperature 1 a relation is e to the cosine: e^1 at 0 degrees, e^0 at 90, e^-1 at 180."""
    new = at_angles(0, 90)
    # 0 to 0 and 90 to 0, against 0 to 90 and back.
    assert kinship(new, at_angles(0), 1.0) == pytest.approx((math.e + 1) / 2)
    # Cosines -1 and 0.
    assert kinship(new, at_angles(180), 1.0) == pytest.approx((1 / math.e + 1) / 2)
    # The lengths of prototypes say nothing.
    assert kinship(3 * new, 7 * at_angles(0), 1.0) == pytest.approx((math.e + 1) / 2)


def test_a_single_new_class_is_measured_by_the_family() -> None:
    """It has no sibling; where the family has one class too, nothing says what related means."""
    assert kinship(at_angles(0), at_angles(0, 90), 1.0) == pytest.approx((math.e + 1) / 2)
    assert kinship(at_angles(0), at_angles(0), 1.0) == 0.0


def test_a_sharp_relation_does_not_overflow() -> None:
    """At a temperature of 0.001 a cosine of 1 would be e to the 1,000."""
    assert kinship(at_angles(0, 1), at_angles(0, 1), 1e-3) > 1
    assert math.isfinite(kinship(at_angles(0, 180), at_angles(0), 1e-4))


def test_the_most_related_family_is_joined_if_it_is_related_enough() -> None:
    """Families at 180 and at 45 degrees, new classes at 30 and 60; subspace 2 has no class left."""
    new, old, owner = at_angles(30, 60), at_angles(180, 45), torch.tensor([0, 1])
    limits = {"temperature": 0.1, "threshold": 0.75}
    assert family_of(new, old, owner, [0, 1, 2], **limits) == 1
    assert family_of(new, old, owner, [0, 2], **limits) is None
    assert family_of(new, old, owner, [], **limits) is None
    assert family_of(new, old, owner, [0, 1], temperature=0.1, threshold=50.0) is None


def test_a_session_that_joins_trains_nothing_and_answers_with_the_founder_s_units() -> None:
    """Three sessions, one subspace; without kinship three subspaces."""
    one, _, three = learn(THREE, **JOIN)
    content = read_content(three)
    assert content.class_subspace.tolist() == [0] * 6
    assert torch.equal(content.subspaces.down, read_content(one).subspaces.down)
    assert three.evaluation["strategy"]["family"] == 0
    assert three.evaluation["strategy"]["borrowed"] is None
    assert content.blend.tolist() == [2.0]
    session_mask = content.subspaces.input_masks[0]
    assert all(torch.equal(mask, session_mask) for mask in content.class_masks[2:])
    apart = read_content(learn(THREE, **APART)[-1])
    assert apart.class_subspace.tolist() == [0, 0, 1, 1, 2, 2]
    assert apart.joined is None


def test_all_classes_are_told_apart() -> None:
    """One pattern a class: the holdout is right after three sessions in one family, and in three."""
    for changes in (JOIN, APART):
        learner = quick_learner(BACKBONE, **changes)
        ready = learner.servable(learn_all(learner, THREE)[-1])
        holdout = THREE[-1].holdout
        answer = ready.predict(holdout.load(range(len(holdout.labels))))
        assert (answer.class_ids == holdout.labels).double().mean() == 1


def family_sums(generation: Generation, sessions: Sequence[SessionData]) -> RidgeStatistics:
    """Sum over all samples at once, under the first session's units."""
    content = read_content(generation)
    network = AnswerNetwork(BACKBONE, SGDSSettings(**QUICK), content)
    inputs = torch.cat([s.train.load(range(len(s.train.labels))) for s in sessions])
    columns = torch.cat([s.train.labels for s in sessions])
    tokens = network.base_features(inputs).tokens
    assert tokens is not None
    features = subspace_features(network, tokens, columns, 0, 16)
    ids = [name for s in sessions for name in s.train.ids]
    empty = RidgeStatistics.empty(features.shape[1])
    return empty.updated(features, columns, fold_of(ids), len(content.class_subspace))


def test_the_head_is_that_of_all_samples_at_once() -> None:
    """Sums and head equal those of one fit over the features of all three sessions' samples."""
    last = learn(THREE, **JOIN)[-1]
    found = read_learner_state(last.learner_state, CPU).families[0]
    expected = family_sums(last, THREE)
    torch.testing.assert_close(found.gram, expected.gram, atol=1e-3, rtol=1e-6)
    torch.testing.assert_close(found.cross, expected.cross, atol=1e-3, rtol=1e-6)
    assert torch.equal(found.count, expected.count)
    weights = expected.solve(expected.choose_strength()).float()
    torch.testing.assert_close(read_content(last).subspace_head, weights, atol=1e-4, rtol=1e-3)


def test_new_samples_of_a_known_class_count_too() -> None:
    """A session without any new class adds them to the sums of their family and of no other."""
    learner = quick_learner(BACKBONE, **APART)
    before = learn_all(learner, THREE[:2])[-1]
    inputs, labels = images([2], 6, seed=77)
    more = TensorSamples(inputs, labels, [f"more-{i}" for i in range(6)])
    after = learner.learn(replace(THREE[1], session=2, new_classes=(), train=more), before)
    old, new = (read_learner_state(g.learner_state, CPU).families for g in (before, after))
    assert new[1].count.sum(dim=0).tolist() == [0, 0, 30, 24]
    assert torch.equal(new[0].gram, old[0].gram)
    # A founder alone keeps the head whose weight was validated.
    assert torch.equal(read_content(after).subspace_head, read_content(before).subspace_head)


def test_no_more_families_than_wanted_are_founded() -> None:
    """The second session still has its own subspace; what is like it has one, too, and not its family."""
    last = learn(THREE, families=1, kinship=1e9)[-1]
    assert list(read_learner_state(last.learner_state, CPU).families) == [0]
    assert len(read_content(last).subspaces) == 3


def test_without_families_nothing_of_them_is_in_a_generation() -> None:
    """Generations of earlier releases read, and are built on, as before."""
    last = learn(THREE)[-1]
    assert "joined" not in last.tensors
    assert not [name for name in last.learner_state if name.startswith("family.")]
    learner = quick_learner(BACKBONE, **JOIN)
    following = learner.learn(stream([0, 1], [2, 3], [4, 5], [6, 7])[3], last)
    assert read_content(following).class_subspace.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_family_outlives_the_setting() -> None:
    """With `families` at 0 none is joined any more, and the sums of the old one are kept up."""
    before = learn(THREE[:2], **JOIN)[-1]
    after = quick_learner(BACKBONE).learn(THREE[2], before)
    assert read_content(after).class_subspace.tolist() == [0, 0, 0, 0, 1, 1]
    assert read_learner_state(after.learner_state, CPU).families[0].count.shape[1] == 6


@pytest.mark.parametrize("part", ["down", "subspace_mean"])
def test_the_certificate_still_guards_what_a_family_reads_through(part: str) -> None:
    """Units and standardisation are promised; the head is not, its classes compete in it."""
    one, two = (read_content(g) for g in learn(THREE[:2], **JOIN))
    certificate = certify(one, two)
    assert certificate["families"] == [0]
    assert certificate["verified_subspaces"] == ["0"]
    certify(one, replace(two, subspace_head=two.subspace_head + 1))
    broken = replace(two, subspace_mean=two.subspace_mean + 1)
    if part == "down":
        broken = replace(two, subspaces=replace(two.subspaces, down=two.subspaces.down + 1))
    with pytest.raises(CertificateViolation, match="subspace 0 is not what it was"):
        certify(one, broken)


def test_the_certificate_guards_the_head_of_a_founder_alone() -> None:
    """Nobody has joined the second session's subspace: its head is promised as ever."""
    two = read_content(learn(THREE[:2], **APART)[-1])
    joined = replace(two, joined=torch.tensor([True, False]))
    certify(joined, replace(joined, subspace_head=joined.subspace_head + torch.tensor([1.0, 1.0, 0.0, 0.0])))
    with pytest.raises(CertificateViolation, match="subspace 1 is not what it was"):
        certify(
            joined, replace(joined, subspace_head=joined.subspace_head + torch.tensor([0.0, 0.0, 1.0, 0.0]))
        )


def only(data: SessionData, class_id: int) -> TensorSamples:
    """Return a class's training samples."""
    rows = (data.train.labels == class_id).nonzero().squeeze(1).tolist()
    return TensorSamples(
        data.train.load(rows), data.train.labels[rows], [data.train.ids[row] for row in rows]
    )


def without(data: SessionData, class_id: int) -> SessionData:
    """Return the session as it would have been without a class."""
    rows = (data.train.labels != class_id).nonzero().squeeze(1).tolist()
    train = TensorSamples(
        data.train.load(rows), data.train.labels[rows], [data.train.ids[row] for row in rows]
    )
    return replace(data, train=train, new_classes=tuple(c for c in data.new_classes if c != class_id))


def test_a_forgotten_class_leaves_its_family_as_if_it_had_never_come() -> None:
    """Class 3 joined: sums and head are those of a run that never saw it."""
    learner = quick_learner(BACKBONE, **JOIN)
    before = learn_all(learner, THREE[:2])[-1]
    after = learner.forget(before, 3, only(THREE[1], 3))
    never = learn_all(learner, [THREE[0], without(THREE[1], 3)])[-1]
    found, expected = (read_learner_state(g.learner_state, CPU).families[0] for g in (after, never))
    samples = int(expected.count.sum())
    torch.testing.assert_close(found.gram / samples, expected.gram / samples, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.cross / samples, expected.cross / samples, atol=1e-6, rtol=0)
    assert torch.equal(found.count, expected.count)
    torch.testing.assert_close(
        after.tensors["subspace_head"], never.tensors["subspace_head"], atol=1e-4, rtol=1e-3
    )
    assert certify_forgetting(read_content(before), read_content(after), 3)["verified_subspaces"] == ["0"]


def test_a_founder_s_forgotten_classes_leave_the_family_to_the_others() -> None:
    """Both classes of the first session go; the second session's still answer through its units."""
    learner = quick_learner(BACKBONE, **JOIN)
    made = learn_all(learner, THREE[:2])[-1]
    for class_id in (0, 1):
        made = learner.forget(made, class_id, only(THREE[0], class_id))
    content = read_content(made)
    assert content.class_subspace.tolist() == [0, 0]
    assert content.joined is not None
    assert content.joined.tolist() == [True]
    inputs, labels = images([2, 3], 10, seed=78)
    assert (learner.servable(made).predict(inputs).class_ids == labels).double().mean() > 0.9
    # A related session can still join.
    assert read_content(learner.learn(THREE[2], made)).class_subspace.tolist() == [0] * 4


def test_a_family_without_classes_is_dropped() -> None:
    """With its last class its sums go, so that nobody can join what is not there."""
    learner = quick_learner(BACKBONE, **APART, borrow=False)
    made = learn_all(learner, THREE[:2])[-1]
    for class_id in (2, 3):
        made = learner.forget(made, class_id, only(THREE[1], class_id))
    assert list(read_learner_state(made.learner_state, CPU).families) == [0]


@pytest.mark.parametrize(
    "changes", [{"exclusive_units": False, "borrow": False}, {"head": "cosine"}, {"mask_scope": "class"}]
)
def test_families_need_what_makes_their_heads_exact(changes: dict[str, object]) -> None:
    """Features that a session or a label changes cannot be summed over sessions."""
    with pytest.raises(ValidationError, match=r"families \(2\) need exclusive_units"):
        SGDSSettings.model_validate({"families": 2, **changes})


def test_the_same_seed_gives_the_same_family() -> None:
    """Digest by digest; over first-session adapters, too."""
    for changes in ({}, {"adapt_first_session": True}):
        runs = [[g.digest for g in learn(THREE, **JOIN, **changes)] for _ in range(2)]
        assert runs[0] == runs[1]
