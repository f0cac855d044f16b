"""Prove that later sessions changed nothing an earlier session computes with.

What session i answers is decided by its number of classes, the weights under its masks, the masks and its
norm statistics. Their sha256 digests are recorded after each session; as long as all of them are found
again, its logits, with the task id given, are the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cl_engine.errors import CertificateViolation
from cl_engine.supermask.network import MaskedNetwork

PARTS = ("classes", "weights", "masks", "norms")


def certify(network: MaskedNetwork, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Record the digests of every session, as JSON-able values.

    Args:
        network: the sessions learnt so far.
        earlier: a certificate that `verify` has just accepted; what it records is taken over, so that the
            work does not grow with the sessions.
    """
    known = list(earlier["sessions"]) if earlier is not None else []
    count = len(network.sessions)
    return {
        "promise": "the weights under each session's mask, the mask and its norms are bit-identical",
        "sessions": known + [_digests(network, session) for session in range(len(known), count)],
        "whole": _whole(network, count),
    }


def verify(network: MaskedNetwork, certificate: Mapping[str, Any]) -> None:
    """Check a network against what an earlier `certify` recorded; later sessions may have been added.

    One digest over all sessions and the weights under any of their masks tells that nothing has changed;
    only where it differs is the session looked for.

    Raises:
        CertificateViolation: a session is missing, or a part of it is no longer the same.
    """
    promised = certificate["sessions"]
    if len(network.sessions) < len(promised):
        raise CertificateViolation(
            f"the certificate covers {len(promised)} sessions, the network has {len(network.sessions)}"
        )
    # Certificates of earlier releases have no such digest.
    if certificate.get("whole") == _whole(network, len(promised)):
        return
    for session, recorded in enumerate(promised):
        found = _digests(network, session)
        broken = [part for part in PARTS if found[part] != recorded[part]]
        if broken:
            raise CertificateViolation(
                f"session {session}: {' and '.join(broken)} changed since the certificate was made: "
                + "; ".join(f"{part} {recorded[part]} is now {found[part]}" for part in broken)
            )
    if "whole" in certificate:
        raise CertificateViolation("the sessions are those certified, but the digest over all of them is not")


def _digests(network: MaskedNetwork, session: int) -> dict[str, str | int]:
    subnetwork = network.sessions[session]
    masks = network.masks(session)
    under = {name: network.weights[name][mask] for name, mask in masks.items()}
    return {
        "classes": subnetwork.classes,
        "weights": _digest(under),
        "masks": _digest(subnetwork.masks),
        "norms": _digest(subnetwork.norms),
    }


def _whole(network: MaskedNetwork, count: int) -> str:
    """Hash the first sessions together, with the weights under any of their masks."""
    sessions = network.sessions[:count]
    used = network.used(count)
    tensors = {f"weights/{name}": weight[used[name]] for name, weight in network.weights.items()}
    for index, session in enumerate(sessions):
        tensors |= {f"{index}/masks/{name}": mask for name, mask in session.masks.items()}
        tensors |= {f"{index}/norms/{name}": norm for name, norm in session.norms.items()}
    return f"{_digest(tensors)} of {[session.classes for session in sessions]} classes"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
