"""Independent random streams that derive from one seed."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *purpose: object) -> torch.Generator:
    """Return a CPU generator for one purpose, such as `(3, "shuffle", 7)`.

    Streams of different purposes do not depend on how much the others have drawn, so a resumed session
    draws what the uninterrupted one would have drawn, and no generator state needs to be stored.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
