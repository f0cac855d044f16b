"""Offset arithmetic of the Kafka source."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.sources.base import Place
from daemon.sources.kafka.offsets import Gap, find_gaps, oldest_age

PLACE = Place("photos", 0)
OFFSETS = st.integers(min_value=0, max_value=10_000)


@given(wanted=OFFSETS, beginning=OFFSETS, length=OFFSETS)
def test_an_offset_within_the_log_or_at_its_end_is_no_gap(wanted: int, beginning: int, length: int) -> None:
    """There is a gap exactly where the wanted record can never come."""
    gaps = find_gaps({PLACE: wanted}, {PLACE: beginning}, {PLACE: beginning + length})
    assert bool(gaps) == (wanted not in range(beginning, beginning + length + 1))


@given(wanted=OFFSETS, beginning=OFFSETS, length=OFFSETS)
def test_lost_records_are_those_between_the_offset_and_the_beginning(
    wanted: int, beginning: int, length: int
) -> None:
    """A replaced log lost nothing that could be counted; retention lost exactly the difference."""
    gap = Gap(PLACE, wanted, beginning, beginning + length)
    assert gap.lost == len(range(wanted, beginning))


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (Gap(PLACE, 10, 372, 400), "begins at 372: 362 records were removed"),
        (Gap(PLACE, 10, 0, 4), "ends at 4"),
        (Gap(PLACE, 10, None, None), "no longer exists"),
    ],
)
def test_each_gap_says_what_happened_where_and_what_to_do(gap: Gap, said: str) -> None:
    """The message names place, offset and remedy, for an operator who has not read the code."""
    message = gap.describe()
    assert said in message
    assert "topic photos partition 0: next offset 10" in message
    assert "on_gap: skip" in message


def test_a_partition_that_is_gone_is_a_gap() -> None:
    """A topic created anew with fewer partitions is noticed."""
    gone = Place("photos", 3)
    assert find_gaps({PLACE: 5, gone: 7}, {PLACE: 0}, {PLACE: 9}) == [Gap(gone, 7, None, None)]


def test_age_is_exact_while_a_record_waits() -> None:
    """The oldest waiting record's own timestamp decides, whatever else is known."""
    assert oldest_age(1000.0, head=940.0, delivered=990.0, caught_up=999.0) == 60.0


def test_an_idle_topic_does_not_age_a_record_that_just_came() -> None:
    """An hour of silence before a record is no lag of an hour."""
    assert oldest_age(5000.0, head=None, delivered=1000.0, caught_up=4999.0) == 1.0


@given(st.floats(0, 1e9), st.none() | st.floats(0, 2e9), st.none() | st.floats(0, 2e9), st.floats(0, 2e9))
def test_age_is_never_negative(
    now: float, head: float | None, delivered: float | None, caught: float
) -> None:
    """Producers' clocks may be ahead of ours."""
    assert oldest_age(now, head, delivered, caught) >= 0
