"""Which samples are held out: a fixed share that only their ids decide."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.state.digest import DIGEST_BYTES, sample_digest
from daemon.state.holdout import holdout_bound, is_holdout


def holdout_share(digest: bytes) -> float:
    """Map a digest to [0, 1) as the states that there are were filled: by its first 53 bits."""
    return (int.from_bytes(digest[:8], "big") >> 11) / float(1 << 53)


@given(st.text(), st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_only_adds(stream: str, sample_id: str, a: float, b: float) -> None:
    """The share is fixed in [0, 1), so a sample held out at a fraction is at every larger one."""
    share = holdout_share(sample_digest(stream, sample_id))
    assert 0 <= share < 1
    low, high = sorted((a, b))
    assert is_holdout(stream, sample_id, high) or not is_holdout(stream, sample_id, low)
    assert not is_holdout(stream, sample_id, 0.0)
    assert is_holdout(stream, sample_id, 1.0)


@given(st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES), st.floats(0, 1))
def test_the_bound_divides_digests_as_the_share_does(digest: bytes, fraction: float) -> None:
    """Many samples at a time get the answers that each by itself gets, at the bound itself too."""
    assert (digest < holdout_bound(fraction)) == (holdout_share(digest) < fraction)
    own = holdout_share(digest)
    assert digest >= holdout_bound(own)
    assert digest < holdout_bound(math.nextafter(own, 1.0))


def test_the_fraction_is_met() -> None:
    """Of many ids about the fraction is held out, and another stream holds out others."""
    ids = [f"sample-{n}" for n in range(20_000)]
    held = {i for i in ids if is_holdout("s", i, 0.2)}
    assert abs(len(held) / len(ids) - 0.2) < 0.01
    assert held != {i for i in ids if is_holdout("other", i, 0.2)}


def test_the_mapping_is_pinned() -> None:
    """A change of the hash would train on what was held out before: SHA-256 of `s`, NUL, `a`."""
    assert sample_digest("s", "a").hex().startswith("4cfd2308ceb473")
    assert holdout_share(sample_digest("s", "a")) == pytest.approx(0x4CFD2308CEB473 / 2**56, abs=1e-15)
