"""Which samples are held out: a pure function of the stream, the sample id and the fraction."""

from __future__ import annotations

import math

from daemon.state.digest import DIGEST_BYTES, sample_digest

# The first 53 bits of a digest are its share of 1: a double holds so many exactly.
_BITS = 53


def holdout_bound(fraction: float) -> bytes:
    """Return what the digests of held-out samples sort below, and no others; for many samples at a time.

    Args:
        fraction: from 0 to 1.
    """
    # Scaling a double by a power of two is exact, so that a share is compared to the last bit.
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
    return sample_digest(stream, sample_id) < holdout_bound(fraction)
