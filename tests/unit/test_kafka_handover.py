"""The bounded, generation-stamped queue between the Kafka consumer and intake."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.sources.base import Place, Record
from daemon.sources.kafka.handover import TAKE_BYTES, Handover
from tests.support.manual_clock import ManualClock

A, B = Place("photos", 0), Place("photos", 1)


def records(place: Place, first: int, end: int, timestamp: float = 1_000_000.0) -> list[Record]:
    """Make consecutive records of ten bytes each."""
    return [Record(*place, offset, None, bytes(10), timestamp=timestamp) for offset in range(first, end)]


def handover(max_records: int = 100, max_bytes: int = 10_000, clock: ManualClock | None = None) -> Handover:
    """Make a hand-over that has nothing stored and owns A and B."""
    made = Handover(max_records, max_bytes, clock or ManualClock())
    made.start({})
    made.assign([A, B])
    return made


def offsets(taken: Sequence[Record]) -> list[int]:
    """Return the offsets in order."""
    return [record.offset for record in taken]


# -- generations
def test_records_fetched_before_a_revocation_are_dropped() -> None:
    """Another member may own the partition already: its records are not ours to hand over."""
    made = handover()
    made.put(A, records(A, 0, 5))
    made.put(B, records(B, 0, 3))
    made.unassign([A], "revoked")
    assert {record.place for record in made.take(0.0, 100)} == {B}
    assert made.counts()[:3] == (0, 0, 5)


def test_records_of_an_earlier_assignment_are_dropped_after_the_next() -> None:
    """Lost and assigned again, a partition starts over; its old prefetch does not come back."""
    made = handover()
    made.put(A, records(A, 0, 5))
    made.unassign([A], "lost")
    made.assign([A])
    made.put(A, records(A, 0, 2))
    assert offsets(made.take(0.0, 100)) == [0, 1]


def test_records_of_a_partition_not_owned_are_dropped() -> None:
    """A fetch that comes in after the revocation is stale as well."""
    made = handover()
    made.unassign([A], "revoked")
    made.put(A, records(A, 0, 5))
    assert made.take(0.0, 100) == []


def test_records_handed_over_before_are_left_out_when_fetched_again() -> None:
    """After a rebalance the group's offset may lie behind what this process has had already."""
    made = handover()
    made.put(A, records(A, 0, 10))
    assert len(made.take(0.0, 6)) == 6
    made.unassign([A], "revoked")
    made.assign([A])
    made.put(A, records(A, 2, 12))
    assert offsets(made.take(0.0, 100)) == list(range(6, 12))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("fetch"), st.integers(1, 20)),
            st.tuples(st.just("take"), st.integers(1, 20)),
            st.tuples(st.just("commit"), st.just(0)),
            st.tuples(st.just("rebalance"), st.just(0)),
        ),
        max_size=60,
    )
)
def test_whatever_rebalances_do_each_record_is_handed_over_once_and_in_order(
    steps: list[tuple[str, int]],
) -> None:
    """No order of fetching, taking, committing and losing the partition skips or doubles an offset."""
    made = Handover(1000, 10**6, ManualClock())
    made.start({})
    made.assign([A])
    fetched, committed, taken = 0, 0, list[int]()
    for step, count in steps:
        if step == "fetch":
            made.put(A, records(A, fetched, fetched + count))
            fetched += count
        elif step == "take":
            taken += offsets(made.take(0.0, count))
        elif step == "commit" and taken:
            made.commit({A: taken[-1] + 1})
            commits = made.take_commits()
            made.committed(commits)
            committed = commits[A]
        elif step == "rebalance":
            made.unassign([A], "revoked")
            fetched = made.assign([A]).get(A, committed)
    taken += offsets(made.take(0.0, 10_000))
    assert taken == list(range(len(taken)))


# -- offsets
def test_stored_offsets_decide_until_this_process_has_committed() -> None:
    """At the start the store wins; later another member may have gone on, and the group knows."""
    made = Handover(100, 10_000, ManualClock())
    made.start({A: 7})
    assert made.assign([A, B]) == {A: 7}
    made.commit({A: 9})
    assert made.take_commits() == {A: 9}
    made.unassign([A], "revoked")
    assert made.assign([A]) == {A: 9}
    made.committed([A])
    made.unassign([A], "revoked")
    assert made.assign([A]) == {}


def test_nothing_is_committed_of_a_partition_that_was_lost() -> None:
    """Its new owner's offset must not be overwritten."""
    made = handover()
    made.commit({A: 5, B: 6})
    made.unassign([A], "lost")
    assert made.take_commits() == {B: 6}
    made.commit({A: 7})
    made.commit_failed({A: 5})
    assert made.take_commits() == {}


def test_a_failed_commit_is_tried_again_unless_a_newer_one_waits() -> None:
    """An older offset never overwrites a newer one."""
    made = handover()
    made.commit({A: 5, B: 5})
    failed = made.take_commits()
    made.commit({A: 8})
    made.commit_failed(failed)
    assert made.take_commits() == {A: 8, B: 5}


def test_a_log_created_anew_is_read_from_its_beginning() -> None:
    """After a restart below what was handed over, low offsets are new records, not repeated ones."""
    made = handover()
    made.put(A, records(A, 0, 10))
    made.take(0.0, 100)
    made.put(A, records(A, 10, 12))
    made.restart(A, 0)
    made.put(A, records(A, 0, 3))
    assert offsets(made.take(0.0, 100)) == [0, 1, 2]


def test_skipping_a_gap_keeps_what_was_fetched_before_it() -> None:
    """Records from before the gap are still good."""
    made = handover()
    made.put(A, records(A, 0, 3))
    made.restart(A, 50)
    made.put(A, records(A, 50, 52))
    assert offsets(made.take(0.0, 100)) == [0, 1, 2, 50, 51]


# -- bounds
@pytest.mark.parametrize(("max_records", "max_bytes"), [(10, 10_000), (1000, 100)])
def test_a_full_queue_pauses_and_a_half_empty_one_resumes(max_records: int, max_bytes: int) -> None:
    """Count and bytes are both bounds; between half and full nothing changes."""
    made = handover(max_records, max_bytes)
    made.put(A, records(A, 0, 9))
    assert made.pause_reason() is None
    made.put(A, records(A, 9, 10))
    assert made.pause_reason() == "backpressure"
    made.take(0.0, 4)
    assert made.pause_reason() == "backpressure"
    made.take(0.0, 2)
    assert made.pause_reason() is None


def test_a_pause_hands_nothing_over_and_loses_nothing() -> None:
    """What was fetched before a pause comes after it."""
    made = handover()
    made.put(A, records(A, 0, 3))
    made.set_pause(True)
    assert made.take(0.0, 10) == []
    assert made.pause_reason() == "intake"
    made.set_pause(False)
    assert offsets(made.take(0.0, 10)) == [0, 1, 2]


def test_the_end_wakes_a_waiting_intake() -> None:
    """Nothing more will come: waiting out the timeout would only delay the news."""
    made = handover()
    waiting = threading.Thread(target=made.take, args=(60.0, 1))
    waiting.start()
    made.end()
    waiting.join(5.0)
    assert not waiting.is_alive()


# -- lag and stall
def test_lag_counts_what_waits_and_what_is_not_fetched() -> None:
    """A record is lag until intake has it, whether it is in the queue or on the broker."""
    clock = ManualClock()
    made = handover(clock=clock)
    made.put(A, records(A, 0, 10, timestamp=clock.now() - 30))
    made.observe({A: 10, B: 4}, {A: 25, B: 4})
    assert made.lag()[A].records == 25
    assert made.lag()[A].seconds == 30.0
    assert made.lag()[B].records == 0
    assert made.lag()[B].seconds == 0.0
    made.take(0.0, 10)
    assert made.lag()[A].records == 15


def test_transaction_markers_at_the_end_are_no_lag() -> None:
    """Offsets that no record has are passed by the fetch position, and that is what counts."""
    made = handover()
    made.put(A, records(A, 0, 3))
    made.take(0.0, 3)
    made.observe({A: 4}, {A: 4})
    assert made.lag()[A].records == 0


def watch(made: Handover, clock: ManualClock, seconds: int, position: int, end: int) -> None:
    """Look once a second, as the consumer's thread does."""
    for _ in range(seconds):
        clock.advance(1.0)
        made.observe({A: position, B: 0}, {A: end, B: 0})


def test_a_partition_with_lag_and_no_records_is_stalled() -> None:
    """Alive is not enough: a partition that gives nothing though it has something is the fault to see."""
    clock = ManualClock()
    made = handover(clock=clock)
    watch(made, clock, 5, position=3, end=3)
    watch(made, clock, 59, position=3, end=10)
    assert made.stalled(60.0) == ()
    watch(made, clock, 2, position=3, end=10)
    assert made.stalled(60.0) == (A,)
    made.put(A, records(A, 3, 4))
    assert made.stalled(60.0) == ()


def test_a_paused_partition_is_not_stalled() -> None:
    """It was told to give nothing."""
    clock = ManualClock()
    made = handover(clock=clock)
    made.set_pause(True)
    watch(made, clock, 100, position=3, end=10)
    assert made.stalled(60.0) == ()


def test_an_outage_is_not_a_stall() -> None:
    """When the broker is back, its partitions have their time again."""
    clock = ManualClock()
    made = handover(clock=clock)
    watch(made, clock, 5, position=3, end=3)
    clock.advance(300.0)
    assert made.stalled(60.0) == ()
    watch(made, clock, 2, position=3, end=10)
    assert made.stalled(60.0) == ()


def test_one_take_is_bounded_in_bytes() -> None:
    """Large records come in several takes, each ending with the chunk that reaches the bound."""
    made = handover(max_bytes=10 * TAKE_BYTES)
    half = [Record(*A, offset, None, bytes(TAKE_BYTES // 2)) for offset in range(5)]
    for record in half:
        made.put(A, [record])
    assert [offsets(made.take(0.0, 100)) for _ in range(3)] == [[0, 1], [2, 3], [4]]
