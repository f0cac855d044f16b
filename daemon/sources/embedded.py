"""Consuming from and producing to the embedded topic log."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from daemon.clock import Clock
from daemon.errors import OffsetGap
from daemon.sources.base import Extent, Lag, Message, Place, Record
from daemon.sources.log import EmbeddedLog

__all__ = ["EmbeddedLog", "EmbeddedReader", "EmbeddedSink", "EmbeddedSource"]

# Other processes append without telling us. Looking costs some 0.2 ms, so this is 0.5 % of one core.
POLL_STEP_SECONDS = 0.05


class EmbeddedSource:
    """A `Source` on one topic of an `EmbeddedLog`, created with one partition if it is not there."""

    def __init__(self, log: EmbeddedLog, topic: str, clock: Clock) -> None:
        self._log = log
        self._topic = topic
        self._clock = clock
        self._positions: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._paused = False
        self._closed = threading.Event()

    def start(self, stored: Mapping[Place, int]) -> None:
        """Go to the stored offsets, in other partitions to the start.

        Raises:
            OffsetGap: records from a stored offset on have been trimmed, or never were in this log.
            SourceUnavailable: the log's file cannot be used now.
        """
        extents = self._log.extents(self._topic)
        if not extents:
            self._log.create_topic(self._topic)
            extents = self._log.extents(self._topic)
        for place, offset in stored.items():
            if place.topic == self._topic:
                self._check(place.partition, offset, extents.get(place.partition))
        self._positions = {
            partition: stored.get(Place(self._topic, partition), extent.start)
            for partition, extent in extents.items()
        }
        self._committed = dict(self._positions)

    def poll(self, timeout: float, max_records: int) -> Sequence[Record]:
        """Return the next records at once if there are any, else wait for some until the timeout (s).

        Raises:
            OffsetGap: the next record has been trimmed meanwhile.
            SourceUnavailable: the log's file cannot be used now.
        """
        deadline = self._clock.monotonic() + timeout
        while True:
            records = [] if self._paused else self._take(max_records)
            remaining = deadline - self._clock.monotonic()
            if records or remaining <= 0:
                return records
            if self._clock.wait(self._closed, min(POLL_STEP_SECONDS, remaining)):
                return []

    def commit(self, next_offsets: Mapping[Place, int]) -> None:
        """Count these offsets as consumed; nothing is kept, since the store's offsets win."""
        for place, offset in next_offsets.items():
            self._committed[place.partition] = offset

    def pause(self) -> None:
        """Return no more records."""
        self._paused = True

    def resume(self) -> None:
        """Return records again."""
        self._paused = False

    def lag(self) -> Mapping[Place, Lag]:
        """Return how many records are not committed yet, and the age of the oldest of them."""
        result: dict[Place, Lag] = {}
        for partition, extent in self._log.extents(self._topic).items():
            consumed = self._committed.get(partition, extent.start)
            behind = max(0, extent.end - consumed)
            oldest = self._log.timestamp(self._topic, partition, consumed) if behind else None
            age = 0.0 if oldest is None else max(0.0, self._clock.now() - oldest)
            result[Place(self._topic, partition)] = Lag(behind, age)
        return result

    def stalled(self) -> Sequence[Place]:
        """List none: a poll reads the file itself, so it gives what is there or raises an error."""
        return ()

    def close(self) -> None:
        """End a poll that waits; idempotent. The log stays open: others use it."""
        self._closed.set()

    def _take(self, max_records: int) -> list[Record]:
        extents = self._log.extents(self._topic)
        records: list[Record] = []
        # The partition that is furthest behind goes first, so that a busy one starves no other.
        order = sorted(extents, key=lambda p: self._positions.get(p, 0) - extents[p].end)
        for partition in order:
            extent = extents[partition]
            position = self._positions.setdefault(partition, extent.start)
            self._check(partition, position, extent)
            if position < extent.end and len(records) < max_records:
                taken = self._log.read(self._topic, partition, position, max_records - len(records))
                if taken:
                    self._positions[partition] = taken[-1].offset + 1
                    records += taken
        return records

    def _check(self, partition: int, offset: int, extent: Extent | None) -> None:
        where = f"topic {self._topic!r} partition {partition} of {self._log.path}"
        if extent is None or offset > extent.end:
            held = "is not there" if extent is None else f"ends at offset {extent.end}"
            raise OffsetGap(
                f"{where} {held}, the state wants offset {offset}: the log has been replaced; "
                "restore the log that belongs to this state, or start with another state_directory"
            )
        if offset < extent.start:
            raise OffsetGap(
                f"{where} starts at offset {extent.start}, the state wants offset {offset}: "
                f"{extent.start - offset} records have been trimmed before they were stored; "
                "restore the log, or start with another state_directory"
            )


class EmbeddedSink:
    """A `Sink` that appends to an `EmbeddedLog`."""

    def __init__(self, log: EmbeddedLog) -> None:
        self._log = log

    def send(self, topic: str, messages: Sequence[Message]) -> None:
        """Append messages durably; those whose idempotency key the topic has are left out.

        Raises:
            SourceUnavailable: the log's file cannot be written now.
        """
        if messages:
            self._log.append(topic, messages)

    def close(self) -> None:
        """Do nothing: every message is durable when `send` returns, and others use the log."""


class EmbeddedReader:
    """A `Reader` of an `EmbeddedLog`."""

    def __init__(self, log: EmbeddedLog) -> None:
        self._log = log

    def extents(self, topic: str) -> Mapping[int, Extent]:
        """Return what each partition holds; nothing for a topic that is not there."""
        return self._log.extents(topic)

    def read(self, topic: str, partition: int, offset: int, limit: int) -> Sequence[Record]:
        """Return the next records from an offset on; none at the end."""
        return self._log.read(topic, partition, offset, limit)

    def close(self) -> None:
        """Do nothing: others use the log."""
