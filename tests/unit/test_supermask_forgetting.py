"""Forgetting a class of a supermask generation: what is gone, what is bit-identical, what stays."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_engine.errors import CertificateViolation
from cl_engine.generation import Generation
from cl_engine.learners import create, servable
from cl_engine.learners.registry import forget
from cl_engine.samples import SessionData, TensorSamples
from cl_engine.supermask.content import Content, read_content
from cl_engine.supermask.forgetting import HEAD, certify_forgetting
from tests.support.small_backbone import images, session_data, small_backbone

OPTIONS: dict[str, Any] = {
    "feature_blocks": 2,
    "hidden": [32],
    "outputs": 4,
    "epochs": 4,
    "density": 0.3,
    "kkt": "best",
}
SESSIONS = (
    session_data(0, [0, 1, 2], []),
    session_data(1, [3, 4], [0, 1, 2]),
    session_data(2, [5, 6], range(5)),
)
CPU = torch.device("cpu")


@cache
def taught(method: str) -> Generation:
    """Run the three sessions."""
    made = None
    for data in SESSIONS:
        made = create(method, small_backbone(), OPTIONS).learn(data, made)
    assert made is not None
    return made


def only(data: SessionData, class_id: int) -> TensorSamples:
    """Return a class's training samples."""
    rows = (data.train.labels == class_id).nonzero().squeeze(1).tolist()
    return TensorSamples(data.train.load(rows), data.train.labels[rows], [data.train.ids[r] for r in rows])


def without(generation: Generation, *class_ids: int) -> Generation:
    """Forget classes of the second session."""
    for class_id in class_ids:
        generation = forget(small_backbone(), generation, class_id, only(SESSIONS[1], class_id))
    return generation


def features(content: Content) -> Tensor:
    """Draw some inputs of the network."""
    draw = torch.Generator().manual_seed(3)
    return torch.randn(20, len(content.standardiser.mean), generator=draw)


@pytest.mark.parametrize("method", ["exssnet", "supsup"])
def test_other_outputs_are_bit_identical(method: str) -> None:
    """The logits of other sessions, and of the other class of the same session, do not change by a bit."""
    before = read_content(taught(method), CPU)
    generation = without(taught(method), 3)
    after = read_content(generation, CPU)
    inputs = features(before)
    for session in (0, 2):
        assert torch.equal(after.network.logits(session, inputs), before.network.logits(session, inputs))
    old, new = before.network.logits(1, inputs), after.network.logits(1, inputs)
    assert torch.equal(new[:, 1], old[:, 1])
    # The class's own output is computed from nothing now.
    assert old[:, 0].abs().max() > 0
    assert not new[:, 0].any()
    assert not after.network.masks(1)[HEAD][0].any()
    assert after.network.sessions[1].scores.keys() == before.network.sessions[1].scores.keys()
    assert not after.network.sessions[1].scores[HEAD][0].any()
    assert after.class_subnetwork.tolist() == [0, 0, 0, 1, 2, 2]
    assert after.class_output.tolist() == [0, 1, 2, 1, 0, 1]
    assert (generation.certificate["holds"], generation.certificate["verified_subnetworks"]) == (True, 3)


def test_a_session_without_classes_takes_its_subnetwork_along() -> None:
    """Its masks are dropped, what nobody else holds is drawn anew, and the later sessions move up."""
    before = read_content(taught("exssnet"), CPU)
    generation = without(taught("exssnet"), 3, 4)
    after = read_content(generation, CPU)
    inputs = features(before)
    assert len(after.network.sessions) == 2
    for now, then in ((0, 0), (1, 2)):
        assert torch.equal(after.network.logits(now, inputs), before.network.logits(then, inputs))
    assert after.class_subnetwork.tolist() == [0, 0, 0, 1, 1]
    used, magnitudes = after.network.used(), after.network.weights
    for name, mask in before.network.masks(1).items():
        own = mask & ~used[name]
        assert own.any()
        # A drawn weight has one magnitude; training had moved some of these away from it.
        constant = (2 / magnitudes[name].shape[1]) ** 0.5
        torch.testing.assert_close(
            magnitudes[name][own].abs(), torch.full_like(magnitudes[name][own], constant)
        )
    answers = servable(small_backbone(), generation).predict(images([0, 1, 2, 5, 6], 6, seed=77)[0])
    assert answers.scores.shape == (30, 5)


def test_the_next_session_builds_on_what_is_left() -> None:
    """Its certificate verifies the subnetworks that stayed."""
    following = create("exssnet", small_backbone(), OPTIONS).learn(
        session_data(3, [7, 8], [0, 1, 2, 5, 6]), without(taught("exssnet"), 3, 4)
    )
    assert following.class_ids == (0, 1, 2, 5, 6, 7, 8)
    assert following.certificate["verified_subnetworks"] == 2


def test_the_certificate_notices_a_change_to_another_class() -> None:
    """A weight under another mask, one under the same session's, and a norm, each off by the least step."""
    before = read_content(taught("exssnet"), CPU)
    after = read_content(without(taught("exssnet"), 3), CPU)
    assert certify_forgetting(before, after, 3)["holds"]
    for session, message in ((0, "subnetwork 0 is not"), (1, "subnetwork 1 changed in more")):
        weights = {name: weight.clone() for name, weight in after.network.weights.items()}
        others = [after.network.masks(s)["layers.0.weight"] for s in range(3) if s != session]
        row, column = (after.network.masks(session)["layers.0.weight"] & ~others[0] & ~others[1]).nonzero()[0]
        weights["layers.0.weight"][row, column] += 1e-3
        broken = replace(after, network=replace(after.network, weights=weights))
        with pytest.raises(CertificateViolation, match=message):
            certify_forgetting(before, broken, 3)
    sessions = list(after.network.sessions)
    moved = {name: norm + 1e-6 for name, norm in sessions[1].norms.items()}
    sessions[1] = replace(sessions[1], norms=moved)
    broken = replace(after, network=replace(after.network, sessions=tuple(sessions)))
    with pytest.raises(CertificateViolation, match="changed in more"):
        certify_forgetting(before, broken, 3)
