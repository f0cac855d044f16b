"""What happens when the group moves partitions: their next owner goes on where this member stopped."""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping
from typing import Protocol

import structlog
from kafka import AsyncConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors
from kafka.net.selector import KernelEvent

from daemon.clock import Clock
from daemon.sources.base import Place
from daemon.sources.kafka.handover import Handover

log = structlog.get_logger(__name__)


# The group waits meanwhile, and a transaction of the store takes about as long.
LOOK_SECONDS = 0.02


class GroupMember(Protocol):
    """The part of a consumer that the listener needs."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Move the fetch position."""
        ...

    def pause(self, *partitions: TopicPartition) -> None:
        """Stop fetching."""
        ...

    def commit_async(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> Awaitable[object]:
        """Commit offsets; the result raises if they were not."""
        ...


class Rebalance(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Keep the hand-over in step with the group.

    The callbacks run on the loop that also sends the heartbeats, so nothing here blocks it. A revoked
    partition is given up once intake has stored what was handed over of it and the group knows: its next
    owner may have a state of its own, where a record that is read twice would count twice. If that takes
    longer than the budget, the partition goes all the same. Of a lost partition nothing is committed.

    Args:
        handover: between the consumer and intake.
        clock: time.
        budget_seconds: how long a revocation may wait for intake.
    """

    def __init__(self, handover: Handover, clock: Clock, budget_seconds: float) -> None:
        self._handover = handover
        self._clock = clock
        self._budget = budget_seconds
        self._consumer: GroupMember | None = None

    def attach(self, consumer: GroupMember) -> None:
        """Name the consumer whose partitions these are; before it subscribes."""
        self._consumer = consumer

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Go to where the store left off, and stay paused if intake is."""
        assert self._consumer is not None, "attached before subscribing"
        if not assigned:
            return
        seek = self._handover.assign(Place(*tp) for tp in assigned)
        for place, offset in seek.items():
            self._consumer.seek(TopicPartition(*place), offset)
        # The group forgets a pause with the partition: without this, a full queue would overflow.
        if self._handover.pause_reason() is not None:
            self._consumer.pause(*assigned)
        log.info("kafka.assigned", partitions=sorted(tp.partition for tp in assigned), from_store=len(seek))

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Give partitions up in good order; what was fetched and not handed over is dropped."""
        assert self._consumer is not None, "attached before subscribing"
        if not revoked:
            return
        places = [Place(*tp) for tp in revoked]
        self._handover.leave(places)
        deadline = self._clock.monotonic() + self._budget
        while not (in_time := self._handover.is_settled(places)) and self._clock.monotonic() < deadline:
            # The client's loop knows no other way to wait; its own `sleep` returns the same.
            await KernelEvent("_sleep", LOOK_SECONDS)
        stored = self._handover.stored_since_assigned(places)
        if stored:
            try:
                await self._consumer.commit_async(as_committed(stored))
            except kafka_errors.KafkaError as error:
                log.info("kafka.commit_failed", error=str(error), partitions=len(stored))
        self._handover.unassign(places, "revoked")
        log.info("kafka.revoked", partitions=sorted(tp.partition for tp in revoked), in_time=in_time)

    async def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        """Drop partitions that another member may own already; nothing of them is committed."""
        if not lost:
            return
        self._handover.unassign([Place(*tp) for tp in lost], "lost")
        log.warning("kafka.lost", partitions=sorted(tp.partition for tp in lost))


def as_committed(offsets: Mapping[Place, int]) -> dict[TopicPartition, OffsetAndMetadata]:
    """Return offsets as the client commits them."""
    return {TopicPartition(*place): OffsetAndMetadata(offset, "", -1) for place, offset in offsets.items()}
