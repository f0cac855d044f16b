"""Which samples are held out: a pure function of the stream, the sample id and the fraction."""

from __future__ import annotations

import math

from daemon.state.digest import DIGEST_BYTES, sample_digest

_BITS = 53  # A double holds so many bits exactly, so that the share is below 1 for every hash.


def holdout_share(digest: bytes) -> float:
    """Map a sample, by its digest, to a fixed number that is uniform in [0, 1)."""
    return (int.from_bytes(digest[:8], "big") >> (64 - _BITS)) / float(1 << _BITS)


def holdout_bound(fraction: float) -> bytes:
    """Return what the digests of held-out samples sort below; for many samples this is the fast way.

    Args:
        fraction: from 0 to 1.
    """
    # Scaling a double by a power of two is exact, so that this is `holdout_share` < fraction to the last bit.
    bound = math.ceil(fraction * (1 << _BITS))
    if bound == 1 << _BITS:
        # One byte longer than every digest, all of which sort below it.
        return b"\xff" * (DIGEST_BYTES + 1)
    return (bound << (64 - _BITS)).to_bytes(8, "big")


def is_holdout(stream: str, sample_id: str, fraction: float) -> bool:
    """Tell whether a sample is never trained on.

    A redelivered sample gets the same answer on every machine, and raising the fraction only adds
    samples to the holdout.
    """
    return holdout_share(sample_digest(stream, sample_id)) < fraction
