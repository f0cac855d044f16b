"""Forgetting a class exactly, and what it may not touch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cl_engine.cached_features import CachedExtract
from cl_engine.errors import CertificateViolation, UnsupportedGeneration
from cl_engine.generation import Generation
from cl_engine.heads import RidgeStatistics
from cl_engine.learners import create, servable
from cl_engine.learners.registry import forget
from cl_engine.samples import SessionData, TensorSamples
from cl_engine.sgds.certificate import certify, certify_forgetting
from cl_engine.sgds.content import read_content
from tests.support.small_backbone import images, session_data, small_backbone

OPTIONS: dict[str, dict[str, object]] = {
    "ridge": {"feature_blocks": 2},
    "ranpac": {"feature_blocks": 2, "projection": 64},
    "slda": {"feature_blocks": 2},
    "ncm": {},
    "sgds": {
        "feature_blocks": 2,
        "adapter_blocks": 2,
        "units_per_session": 4,
        "explore_epochs": 1,
        "compact_epochs": 1,
    },
    "exssnet": {"feature_blocks": 2, "hidden": [32], "outputs": 4, "epochs": 4, "density": 0.3},
    "supsup": {"feature_blocks": 2, "hidden": [32], "outputs": 4, "epochs": 4, "density": 0.3},
}
SESSIONS = (
    session_data(0, [0, 1, 2], []),
    session_data(1, [3, 4], [0, 1, 2]),
    session_data(2, [5], range(5)),
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


def taught(method: str, sessions: tuple[SessionData, ...] = SESSIONS[:2]) -> Generation:
    """Run the sessions and return the last generation."""
    learner = create(method, small_backbone(), OPTIONS[method])
    made = None
    for data in sessions:
        made = learner.learn(data, made)
    assert made is not None
    return made


def ridge_of(generation: Generation) -> RidgeStatistics:
    """Read the ridge statistics."""
    return RidgeStatistics.read(generation.learner_state, "ridge.", torch.device("cpu"))


@pytest.mark.parametrize("method", ["ridge", "ranpac", "slda", "sgds", "exssnet", "supsup"])
def test_the_sums_are_those_of_a_run_that_never_saw_the_class(method: str) -> None:
    """Class 3 of the second session: features computed again from the samples, sums equal to 1e-6."""
    after = forget(small_backbone(), taught(method), 3, only(SESSIONS[1], 3))
    never = taught(method, (SESSIONS[0], without(SESSIONS[1], 3)))
    found, expected = ridge_of(after), ridge_of(never)
    samples = int(expected.count.sum())
    torch.testing.assert_close(found.gram / samples, expected.gram / samples, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.cross / samples, expected.cross / samples, atol=1e-6, rtol=0)
    assert torch.equal(found.count, expected.count)
    for name in ("prototypes.total", "prototypes.count"):
        torch.testing.assert_close(after.learner_state[name], never.learner_state[name], atol=1e-6, rtol=0)
    assert after.classes == never.classes
    assert after.certificate["holds"]
    assert after.certificate["residual"] < 1e-6


@pytest.mark.parametrize("method", ["ridge", "ranpac", "slda"])
def test_with_the_same_features_sums_and_head_are_equal(method: str) -> None:
    """Where features come out bit for bit as they went in, only rounding is left."""
    backbone = small_backbone()
    extract = CachedExtract(backbone, 2, 1)
    learner = create(method, backbone, OPTIONS[method], extract)
    first = learner.learn(SESSIONS[0], None)
    after = forget(backbone, learner.learn(SESSIONS[1], first), 4, only(SESSIONS[1], 4), extract)
    never = learner.learn(without(SESSIONS[1], 4), first)
    torch.testing.assert_close(ridge_of(after).gram, ridge_of(never).gram, atol=1e-9, rtol=0)
    torch.testing.assert_close(after.tensors["weights"], never.tensors["weights"], atol=1e-5, rtol=0)
    inputs, _ = images(range(4), 5, seed=3)
    answers = [servable(backbone, g).predict(inputs) for g in (after, never)]
    assert torch.equal(answers[0].class_ids, answers[1].class_ids)


@pytest.mark.parametrize("method", list(OPTIONS))
def test_the_class_is_gone_and_the_others_are_still_known(method: str) -> None:
    """No column, no label, no answer of the class; the others are recognised, and a session can follow."""
    after = forget(small_backbone(), taught(method), 1, only(SESSIONS[0], 1))
    ready = servable(small_backbone(), after)
    inputs, labels = images([0, 2, 3, 4], 10, seed=77)
    prediction = ready.predict(inputs)
    assert ready.class_ids == (0, 2, 3, 4)
    assert 1 not in ready.labels
    assert prediction.scores.shape == (40, 4)
    assert (prediction.class_ids == labels).float().mean() > 0.7
    following = create(method, small_backbone(), OPTIONS[method]).learn(SESSIONS[2], after)
    assert following.class_ids == (0, 2, 3, 4, 5)
    assert after.parent == taught(method).digest


def test_other_prototypes_do_not_move() -> None:
    """The nearest means of the other classes are bit-identical."""
    before = taught("ncm")
    after = forget(small_backbone(), before, 0, only(SESSIONS[0], 0))
    assert torch.equal(after.tensors["prototypes"], before.tensors["prototypes"][1:])


def test_other_classes_keep_their_subspaces_bit_for_bit() -> None:
    """SGDS: other sessions' subspaces and the class's own session's units stay; its masks and columns go."""
    before = taught("sgds")
    after = forget(small_backbone(), before, 1, only(SESSIONS[0], 1))
    assert after.certificate["verified_subspaces"] == ["0", "1"]
    for name in ("down", "up", "borrowed", "blend", "subspace_mean"):
        assert torch.equal(after.tensors[name], before.tensors[name])
    kept = [0, 2, 3, 4]
    assert torch.equal(after.masks["input.class"], before.masks["input.class"][kept])
    assert torch.equal(after.tensors["subspace_head"], before.tensors["subspace_head"][:, kept])
    assert torch.equal(after.learner_state["counters"], before.learner_state["counters"][kept])


def test_units_that_nobody_needs_any_more_are_wiped() -> None:
    """The last class of a session takes its units along, unless another session borrows them."""
    learner = create("sgds", small_backbone(), OPTIONS["sgds"] | {"borrow": False})
    before = learner.learn(SESSIONS[1], learner.learn(SESSIONS[0], None))
    assert before.tensors["up"][1].any()
    after = before
    for class_id in (3, 4):
        assert after.tensors["up"][1].equal(before.tensors["up"][1])
        after = forget(small_backbone(), after, class_id, only(SESSIONS[1], class_id))
    for name in ("down", "up"):
        assert torch.equal(after.tensors[name][0], before.tensors[name][0])
        assert not after.tensors[name][1].any()
    assert not after.masks["input.session"][1].any()

    subspaces = replace(read_content(before).subspaces, borrowed=torch.tensor([1, -1]))
    kept = replace(
        before,
        tensors={**before.tensors, "borrowed": subspaces.borrowed},
        masks={**before.masks, "units": subspaces.unit_masks()},
    )
    for class_id in (3, 4):
        kept = forget(small_backbone(), kept, class_id, only(SESSIONS[1], class_id))
    assert torch.equal(kept.tensors["up"], before.tensors["up"])


@pytest.mark.parametrize("broken", ["down", "up", "blend", "subspace_mean", "subspace_head"])
def test_the_certificate_notices_a_change_to_another_class(broken: str) -> None:
    """One number off by the least step in what another class answers with fails it."""
    before = taught("sgds")
    after = forget(small_backbone(), before, 3, only(SESSIONS[1], 3))
    old, new = read_content(before), read_content(after)
    assert certify_forgetting(old, new, 3)["holds"]
    tensors = {name: t.clone() for name, t in after.tensors.items()}
    first = tensors[broken].flatten()
    first[-1] = torch.nextafter(first[-1], torch.tensor(9.0))
    tampered = replace(after, tensors=tensors)
    with pytest.raises(CertificateViolation, match="before a class was forgotten"):
        certify_forgetting(old, read_content(tampered), 3)
    assert certify(None, new)["holds"]


def test_samples_that_were_not_learnt_are_refused() -> None:
    """Too few, of another class, or others of the same class: the sums would be wrong for ever."""
    generation, backbone = taught("ridge"), small_backbone()
    right = only(SESSIONS[1], 3)

    def part(inputs: Tensor, labels: Tensor, ids: list[str]) -> TensorSamples:
        return TensorSamples(inputs, labels, ids)

    with pytest.raises(ValueError, match=r"was learnt from 24 samples .* 23 "):
        forget(backbone, generation, 3, part(right.inputs[1:], right.labels[1:], list(right.ids[1:])))
    with pytest.raises(ValueError, match=r"samples are of classes \[3\] too"):
        forget(backbone, generation, 4, right)
    other = only(SESSIONS[1], 4)
    with pytest.raises(ValueError, match="not those it was learnt from"):
        forget(backbone, generation, 3, part(other.inputs, right.labels, list(right.ids)))
    with pytest.raises(ValueError, match="class 9 is not one of"):
        forget(backbone, generation, 9, right)
    with pytest.raises(UnsupportedGeneration, match="learner state is gone"):
        forget(backbone, replace(generation, learner_state={}), 3, right)


def test_the_last_class_and_a_method_that_mixes_classes_are_refused() -> None:
    """A generation of no class answers nothing; trained weights hold their classes for good."""
    alone = session_data(0, [0], [])
    with pytest.raises(ValueError, match="is the only one"):
        forget(small_backbone(), taught("ncm", (alone,)), 0, only(alone, 0))
    naive = create("finetune", small_backbone(), {"adapter_blocks": 2, "epochs": 1}).learn(SESSIONS[0], None)
    with pytest.raises(
        ValueError, match=r"'finetune' cannot take a class out .*: retrain without class 0, or .* sgds, .*ncm"
    ):
        forget(small_backbone(), naive, 0, only(SESSIONS[0], 0))
