"""The stream of the soak benchmark: what it expects must be what it sends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.soak import (
    FULL,
    PARTITIONS,
    QUICK,
    Kind,
    Look,
    expected,
    kind_and_sample,
    mean_resident,
    rate,
)


@given(st.integers(0, FULL.records - 1))
def test_a_duplicate_is_of_an_earlier_fresh_sample_in_another_partition(number: int) -> None:
    """Otherwise the expected counts would not follow from the numbers."""
    kind, sample = kind_and_sample(number)
    if kind is Kind.AGAIN:
        assert sample < number
        assert sample % PARTITIONS != number % PARTITIONS
        assert kind_and_sample(sample)[0] is Kind.FRESH
    else:
        assert sample == number


def test_every_kind_is_in_the_stream() -> None:
    """In the proportions that the benchmark tells of."""
    counts = expected(QUICK.records)
    assert sum(counts.values()) == QUICK.records
    assert counts[Kind.AGAIN] == QUICK.records * 5 // 100
    assert counts[Kind.BAD] == QUICK.records // 100
    assert counts[Kind.TOMBSTONE] == QUICK.records // 1000


def test_means_and_rates_between_shares_of_the_records() -> None:
    """A share that no look hit begins with the next look."""
    looks = [Look(0, 10, 0.0), Look(25, 20, 1.0), Look(50, 30, 2.0), Look(100, 50, 4.0)]
    assert mean_resident(looks, 100, 0.2, 0.5) == 25
    assert mean_resident(looks, 100, 0.9, 1.0) == 50
    assert rate(looks, 100, 0.0, 1.0) == 25.0
