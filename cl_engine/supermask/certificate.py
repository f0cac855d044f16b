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


def certify(network: MaskedNetwork) -> dict[str, Any]:
    """Record the digests of every session, as JSON-able values."""
    return {
        "promise": "the weights under each session's mask, the mask and its norms are bit-identical",
        "sessions": [_digests(network, session) for session in range(len(network.sessions))],
    }


def verify(network: MaskedNetwork, certificate: Mapping[str, Any]) -> None:
    """Check a network against what an earlier `certify` recorded; later sessions may have been added.

    Raises:
        CertificateViolation: a session is missing, or a part of it is no longer the same.
    """
    promised = certificate["sessions"]
    if len(network.sessions) < len(promised):
        raise CertificateViolation(
            f"the certificate covers {len(promised)} sessions, the network has {len(network.sessions)}"
        )
    for session, recorded in enumerate(promised):
        found = _digests(network, session)
        broken = [part for part in PARTS if found[part] != recorded[part]]
        if broken:
            raise CertificateViolation(
                f"session {session}: {' and '.join(broken)} changed since the certificate was made: "
                + "; ".join(f"{part} {recorded[part]} is now {found[part]}" for part in broken)
            )


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


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
