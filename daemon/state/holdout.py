"""Which samples are held out: a pure function of the stream, the sample id and the fraction."""

from __future__ import annotations

from daemon.state.digest import sample_digest

_BITS = 53  # A double holds so many bits exactly, so that the share is below 1 for every hash.


def holdout_share(digest: bytes) -> float:
    """Map a sample, by its digest, to a fixed number that is uniform in [0, 1)."""
    return (int.from_bytes(digest[:8], "big") >> (64 - _BITS)) / float(1 << _BITS)


def is_holdout(stream: str, sample_id: str, fraction: float) -> bool:
    """Tell whether a sample is never trained on.

    A redelivered sample gets the same answer on every machine, and raising the fraction only adds
    samples to the holdout.
    """
    return holdout_share(sample_digest(stream, sample_id)) < fraction
