"""What the SGDS certificate finds, and what it reports about masks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cl_engine.errors import CertificateViolation
from cl_engine.sgds.certificate import certify
from cl_engine.sgds.content import Content, read_content
from cl_engine.sgds.relation import overlap_similarity_correlation
from tests.support.sgds_sessions import learn_all, quick_learner, stream
from tests.support.small_backbone import small_backbone

BACKBONE = small_backbone()
THREE = stream([0, 1], [2, 3], [4, 5])


def tampered(content: Content, part: str) -> Content:
    """Alter one number of the first subspace."""
    units = content.subspaces
    if part in {"down", "up", "borrowed", "input_masks"}:
        changed = getattr(units, part).clone()
        value = changed[0].flatten()[0]
        changed[0].view(-1)[0] = ~value if changed.dtype == torch.bool else value + 1
        return replace(content, subspaces=replace(units, **{part: changed}))
    changed = getattr(content, part).clone()
    first = changed.view(-1)[:1]
    changed.view(-1)[0] = (~first if changed.dtype == torch.bool else first + 1)[0]
    return replace(content, **{part: changed})


@pytest.mark.parametrize(
    "part",
    [
        "down",
        "up",
        "borrowed",
        "input_masks",
        "class_masks",
        "class_subspace",
        "subspace_mean",
        "subspace_scale",
        "subspace_head",
        "blend",
    ],
)
def test_the_certificate_finds_any_change(part: str) -> None:
    """One number of an earlier session's units, masks, head or blend, and the session is refused."""
    one, two = learn_all(quick_learner(BACKBONE), THREE[:2])
    before, after = read_content(one), read_content(two)
    assert certify(before, after)["verified_subspaces"] == ["0"]
    with pytest.raises(CertificateViolation, match="subspace 0 is not what it was"):
        certify(before, tampered(after, part))


def test_the_certificate_finds_a_lost_subspace() -> None:
    """A session that is no longer there is not what it was."""
    one, two = learn_all(quick_learner(BACKBONE), THREE[:2])
    with pytest.raises(CertificateViolation, match=r"subspace 1 .* missing"):
        certify(read_content(two), read_content(one))


@pytest.mark.parametrize("part", ["down", "class_masks", "subspace_head", "blend"])
def test_a_learner_that_breaks_its_promise_gives_no_generation(
    monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A session whose last step alters an earlier subspace raises instead of returning."""
    learner = quick_learner(BACKBONE)
    previous = learner.learn(THREE[0], None)
    monkeypatch.setattr(
        "cl_engine.sgds.session.Session._calibrated", lambda _self, content: tampered(content, part)
    )
    with pytest.raises(CertificateViolation):
        learner.learn(THREE[1], previous)


def test_disjoint_supports_are_counted() -> None:
    """Three classes: two share an activation, the third none: two of three pairs are disjoint."""
    content = read_content(quick_learner(BACKBONE).learn(THREE[0], None))
    content = replace(content, subspace_head=torch.zeros(len(content.subspace_head), 3))
    masks = torch.zeros(3, 2, 16, dtype=torch.bool)
    masks[0, 0, :4] = masks[1, 0, 3:6] = masks[2, 1, :4] = True
    certificate = certify(None, replace(content, class_masks=masks, class_subspace=torch.tensor([0, 0, -1])))
    assert certificate["class_pairs"] == 3
    assert certificate["class_pairs_with_disjoint_input_supports"] == 2


def test_the_correlation_of_overlap_and_similarity() -> None:
    """Overlaps 1/3, 0, 1/3 against cosines rising with them correlate fully; two classes not at all."""
    masks = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]).bool()[:, None]
    angles = torch.tensor([0.0, 0.5, 1.0])
    prototypes = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert overlap_similarity_correlation(masks, prototypes) == pytest.approx(1.0, abs=1e-5)
    assert overlap_similarity_correlation(masks[:2], prototypes[:2]) is None
    assert overlap_similarity_correlation(masks[:1].expand(3, 1, 4), prototypes) is None
