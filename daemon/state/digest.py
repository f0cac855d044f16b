"""What a sample is found by: a short digest of its stream and id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

# Two of 10^12 ids share 16 bytes with a probability of 10^-15; to make two that do takes 2^64 hashes.
DIGEST_BYTES = 16


def sample_digest(stream: str, sample_id: str) -> bytes:
    """Return the first bytes of the SHA-256 of stream, NUL and id.

    Ids are as long as their producers like, and an index of texts of 64 characters has four times the pages
    of one of 16 bytes. Its pages are what a transaction mostly writes: ids are random, so that nearly each
    new one changes a page of its own.
    """
    return hashlib.sha256(f"{stream}\0{sample_id}".encode()).digest()[:DIGEST_BYTES]


def digests(stream: str, ids: Iterable[str]) -> list[bytes]:
    """Return the digest of each sample of a stream."""
    return [sample_digest(stream, sample_id) for sample_id in ids]
