"""What happens when the group moves partitions: nothing that waits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import structlog
from kafka import ConsumerRebalanceListener, TopicPartition

from daemon.sources.base import Place
from daemon.sources.kafka.handover import Handover

log = structlog.get_logger(__name__)


class Seekable(Protocol):
    """The part of a consumer that the listener needs."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Move the fetch position."""
        ...

    def pause(self, *partitions: TopicPartition) -> None:
        """Stop fetching."""
        ...


class Rebalance(ConsumerRebalanceListener):  # type: ignore[misc]
    """Keep the hand-over in step with the group.

    The callbacks run on the loop that also sends the heartbeats, so they only set state: an offset
    not committed by then is fetched again by whoever owns the partition, and counts once.
    """

    def __init__(self, handover: Handover) -> None:
        self._handover = handover
        self._consumer: Seekable | None = None

    def attach(self, consumer: Seekable) -> None:
        """Name the consumer whose partitions these are; before it subscribes."""
        self._consumer = consumer

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
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

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Give partitions up in good order; what was fetched and not handed over is dropped."""
        self._give_up(revoked, lost=False)

    def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        """Drop partitions that another member may own already; nothing of them is committed."""
        self._give_up(lost, lost=True)

    def _give_up(self, partitions: Collection[TopicPartition], *, lost: bool) -> None:
        if not partitions:
            return
        kind = "lost" if lost else "revoked"
        self._handover.unassign([Place(*tp) for tp in partitions], "lost" if lost else "revoked")
        log.log(30 if lost else 20, f"kafka.{kind}", partitions=sorted(tp.partition for tp in partitions))
