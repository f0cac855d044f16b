"""What a revocation waits for, and what it tells the group."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any

from kafka import OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors
from kafka.future import Future

from daemon.sources.base import Place, Record
from daemon.sources.kafka.handover import Handover
from daemon.sources.kafka.rebalance import Rebalance
from tests.support.manual_clock import ManualClock

PLACE, TP = Place("photos", 0), TopicPartition("photos", 0)
BUDGET_SECONDS = 10.0


class FakeMember:
    """A member of a group that notes what it commits, or fails to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.commits: list[int] = []

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Do nothing."""

    def pause(self, *partitions: TopicPartition) -> None:
        """Do nothing."""

    def commit_async(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> Future:
        """Note the offset."""
        self.commits.append(offsets[TP].offset)
        return Future().success(None) if self.error is None else Future().failure(self.error)


class Rig:
    """A partition of which intake has taken some records, and a group that takes it away."""

    def __init__(self, taken: int, *, fetched: int = 5, error: Exception | None = None) -> None:
        self.clock = ManualClock()
        self.handover = Handover(100, 10_000, self.clock)
        self.handover.start({PLACE: 0})
        self.member = FakeMember(error)
        self.listener = Rebalance(self.handover, self.clock, BUDGET_SECONDS)
        self.listener.attach(self.member)
        assert self.ends(self.listener.on_partitions_assigned({TP}))
        self.fetch(0, fetched)
        assert len(self.handover.take(0.0, taken)) == taken
        self.revoking = self.listener.on_partitions_revoked({TP})

    def fetch(self, first: int, end: int) -> None:
        """Have records come from the broker."""
        self.handover.put(PLACE, [Record("photos", 0, n, None, b"x") for n in range(first, end)])

    def ends(self, callback: Coroutine[Any, Any, None] | None = None) -> bool:
        """Go on with a callback, of the revocation if none is named; return whether it has ended."""
        try:
            (callback or self.revoking).send(None)
        except StopIteration:
            return True
        return False


def test_a_revocation_waits_until_intake_has_stored_what_it_has() -> None:
    """The next owner goes on behind the last stored record, and none is handed over meanwhile."""
    rig = Rig(taken=3)
    assert not rig.ends()
    rig.fetch(5, 8)
    assert rig.handover.take(0.0, 10) == []
    assert not rig.ends()
    rig.handover.commit({PLACE: 3})
    assert rig.ends()
    assert rig.member.commits == [3]
    assert rig.handover.positions() == {}


def test_a_revocation_waits_no_longer_than_its_budget() -> None:
    """Intake that hangs costs the group a while, not for ever; what is stored is committed."""
    rig = Rig(taken=3)
    rig.handover.commit({PLACE: 2})
    assert not rig.ends()
    rig.clock.advance(BUDGET_SECONDS)
    assert rig.ends()
    assert rig.member.commits == [2]


def test_a_revocation_without_anything_in_hand_waits_for_nothing() -> None:
    """Records that were only fetched are the next owner's; committing an offset from before would rewind."""
    rig = Rig(taken=0)
    assert rig.ends()
    assert rig.member.commits == []
    assert rig.handover.take(0.0, 10) == []


def test_a_closing_source_waits_for_nothing() -> None:
    """Nobody stores anything any more."""
    rig = Rig(taken=3)
    rig.handover.end()
    assert rig.ends()


def test_a_commit_that_fails_ends_no_revocation() -> None:
    """The partition goes all the same; its records are read twice then."""
    rig = Rig(taken=3, error=kafka_errors.RebalanceInProgressError())
    rig.handover.commit({PLACE: 3})
    assert rig.ends()
    assert rig.handover.positions() == {}
