"""Forgetting a class of a supermask generation: its statistics, its prototype, its output and what it owned.

Exact is the head that answers over all classes: its sums equal those of a run that never saw the class (see
`learners.forgetting`). In the class's subnetwork its row of the head leaves the mask, so its output is gone
and the other outputs are computed as before, bit for bit. Weights that no mask holds any more, those of
that row or, with the session's last class, of the whole subnetwork, are drawn anew.

What stays: the subnetwork's mask, hidden weights and norms, as long as another class of its session
answers with them, and weights that later sessions' masks hold as well. They were found with the class
among the training samples, and no arithmetic takes it out of them; who needs that has to retrain the
session.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cl_engine.backbones import BlockwiseBackbone
from cl_engine.errors import CertificateViolation
from cl_engine.features import Extract
from cl_engine.generation import Generation
from cl_engine.heads.statistics import Statistics, read_statistics
from cl_engine.learners.forgetting import check_known, taken_out, without_class
from cl_engine.samples import SampleSet
from cl_engine.supermask.certificate import certify
from cl_engine.supermask.content import Content, read_content
from cl_engine.supermask.network import MaskedNetwork, packed
from cl_engine.supermask.scores import signed_kaiming_constant
from cl_engine.supermask.seeding import generator

HEAD = "head.weight"


@torch.no_grad()
def forget_class(
    backbone: BlockwiseBackbone,
    extract: Extract,
    feature_blocks: int,
    generation: Generation,
    class_id: int,
    samples: SampleSet,
) -> Generation:
    """Take a class out.

    Raises:
        UnsupportedGeneration: not of a supermask method, or without its learner state.
        ValueError: the class is unknown or the last one, or the samples are not all that it was learnt
            from.
        CertificateViolation: something of another class would change.
    """
    column = check_known(generation, class_id, samples)
    before = read_content(generation, backbone.device)
    statistics = read_statistics(generation, backbone.device)
    features = before.standardiser(extract(backbone, samples, feature_blocks).features)
    ridge, residual = taken_out(statistics.ridge, features, samples.ids, column, class_id)
    prototypes = statistics.prototypes.without(column)
    after = replace(
        _without(before, column, seed=class_id),
        ridge_weights=ridge.solve(ridge.choose_strength()).float(),
        prototypes=prototypes.prototypes().to(backbone.device),
    )
    certificate = certify_forgetting(before, after, column)
    tensors, scores = after.split()
    return without_class(
        generation,
        class_id,
        tensors=tensors,
        masks={},
        learner_state=Statistics(ridge, prototypes).tensors() | scores,
        certificate=certificate | {"forgotten": class_id, "residual": residual},
    )


def certify_forgetting(before: Content, after: Content, column: int) -> dict[str, Any]:
    """Prove that forgetting the class at a column changed nothing that other classes' subnetworks compute.

    Every other subnetwork is bit-identical; in the class's own the mask has lost the class's row of the
    head and nothing else, and the weights under it and the norms are bit-identical.

    Raises:
        CertificateViolation: naming the subnetwork that differs.
    """
    subnetwork, output = int(before.class_subnetwork[column]), int(before.class_output[column])
    dropped = subnetwork >= 0 and len(before.network.sessions) > len(after.network.sessions)
    certificate = certify(after.network)
    expected: list[Any] = certify(before.network)["sessions"]
    if dropped:
        del expected[subnetwork]
    elif subnetwork >= 0:
        _check_own(before.network, after.network, subnetwork, output)
        expected[subnetwork] = certificate["sessions"][subnetwork]
    for index, (recorded, found) in enumerate(zip(expected, certificate["sessions"], strict=True)):
        if recorded != found:
            raise CertificateViolation(
                f"subnetwork {index} is not what it was before a class was forgotten: {found} instead of "
                f"{recorded}"
            )
    return certificate | {"holds": True, "verified_subnetworks": len(expected)}


def _check_own(before: MaskedNetwork, after: MaskedNetwork, session: int, output: int) -> None:
    """Check the class's own subnetwork.

    Raises:
        CertificateViolation: something besides the class's output differs.
    """
    expected, found = before.masks(session), after.masks(session)
    expected[HEAD][output] = False
    same = all(
        torch.equal(found[name], mask) and torch.equal(after.weights[name][mask], before.weights[name][mask])
        for name, mask in expected.items()
    )
    old, new = before.sessions[session], after.sessions[session]
    norms = all(torch.equal(new.norms[name], norm) for name, norm in old.norms.items())
    if not (same and norms and old.classes == new.classes):
        raise CertificateViolation(
            f"subnetwork {session} changed in more than the output of the class that was forgotten"
        )


def _without(content: Content, column: int, seed: int) -> Content:
    """Drop a class's column, its output and what nobody uses any more."""
    subnetwork, output = int(content.class_subnetwork[column]), int(content.class_output[column])
    kept = torch.arange(len(content.class_subnetwork)) != column
    class_subnetwork, class_output = content.class_subnetwork[kept], content.class_output[kept]
    network = content.network
    if subnetwork >= 0:
        sessions = list(network.sessions)
        if (class_subnetwork == subnetwork).any():
            masks = network.masks(subnetwork)
            masks[HEAD][output] = False
            own = sessions[subnetwork]
            sessions[subnetwork] = replace(own, masks=packed(masks), scores=_without_row(own.scores, output))
        else:
            del sessions[subnetwork]
            class_subnetwork = class_subnetwork - (class_subnetwork > subnetwork).long()
        network = _freed(network, replace(network, sessions=tuple(sessions)), seed)
    return replace(content, network=network, class_subnetwork=class_subnetwork, class_output=class_output)


def _without_row(scores: Mapping[str, Tensor], output: int) -> Mapping[str, Tensor]:
    """Take the class's row out of the scores that later sessions may start from."""
    if not scores:
        return scores
    head = scores[HEAD].clone()
    head[output] = 0
    return {**scores, HEAD: head}


def _freed(before: MaskedNetwork, after: MaskedNetwork, seed: int) -> MaskedNetwork:
    """Draw the weights anew that some mask held before and none does now."""
    was, now = before.used(), after.used()
    weights = {}
    for name, weight in after.weights.items():
        fresh = signed_kaiming_constant(weight.shape, generator(seed, "freed", name)).to(weight.device)
        weights[name] = torch.where(was[name] & ~now[name], fresh, weight)
    return replace(after, weights=weights)
