"""Where a stream's messages come from, behind one protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

# Records of one look; a dead letter may be as large as the largest message.
SCAN_RECORDS = 64
# Where the log itself cannot tell, a message's idempotency key travels as this header.
IDEMPOTENCY_HEADER = "idempotency-key"


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


# A tuple, because it is made for every message: a frozen dataclass takes three times as long.
class Record(NamedTuple):
    """One message as it lies in the log.

    Attributes:
        topic, partition, offset: its place; offsets of a partition ascend, with gaps allowed.
        key: the producer's key, None if it gave none.
        value: the bytes, None for a tombstone.
        headers: header name to bytes; of a repeated header the last value.
        timestamp: seconds since the epoch, as the log has it.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes] = {}
    timestamp: float = 0.0

    @property
    def place(self) -> Place:
        """The partition it lies in."""
        return Place(self.topic, self.partition)


@dataclass(frozen=True)
class Lag:
    """How far behind a consumer is in one partition."""

    records: int
    seconds: float


class Source(Protocol):
    """A consumer of one stream's labelled topic.

    One thread owns a source and makes every call. `poll` never blocks longer than its timeout.
    """

    def start(self, stored: Mapping[Place, int]) -> None:
        """Connect and go to where the store left off.

        Args:
            stored: next offset wanted per partition, as the state has it; it wins over whatever the
                log's own consumer group says.

        Raises:
            OffsetGap: a stored offset is no longer in the log.
            SourceUnavailable: the log cannot be reached.
        """
        ...

    def poll(self, timeout: float, max_records: int) -> Sequence[Record]:
        """Return the next records, in offset order within a partition; empty after the timeout (s)."""
        ...

    def commit(self, next_offsets: Mapping[Place, int]) -> None:
        """Tell the log what is stored durably; called only after the state's transaction."""
        ...

    def pause(self) -> None:
        """Stop returning records; `poll` goes on being called and returns nothing."""
        ...

    def resume(self) -> None:
        """Return records again."""
        ...

    def lag(self) -> Mapping[Place, Lag]:
        """Return the lag per partition, cheap enough to ask every second."""
        ...

    def stalled(self) -> Sequence[Place]:
        """List partitions that have records and give none though nothing is known to be in the way.

        Any thread may ask. A log that does not answer is in the way: its partitions are not listed.
        """
        ...

    def close(self) -> None:
        """Leave the group and release everything; idempotent."""
        ...


class Extent(NamedTuple):
    """What a partition holds: `[start, end)`; `end` is the next offset to be given."""

    start: int
    end: int


class Reader(Protocol):
    """Looks into any topic of the log by offset, outside every consumer group; one thread owns it."""

    def extents(self, topic: str) -> Mapping[int, Extent]:
        """Return what each partition holds; nothing for a topic that is not there.

        Raises:
            SourceUnavailable: the log cannot be reached.
        """
        ...

    def read(self, topic: str, partition: int, offset: int, limit: int) -> Sequence[Record]:
        """Return the next records from an offset of the extent on; none at its end.

        Raises:
            SourceUnavailable: the log cannot be reached.
        """
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...


def scan(reader: Reader, topic: str, latest: int | None = None) -> Iterator[Record]:
    """Yield what a topic holds now, partition by partition, in offset order.

    Args:
        reader: of the log.
        topic: its name; nothing comes of one that is not there.
        latest: at most about so many records of each partition, the latest ones; None for all.
    """
    for partition, extent in sorted(reader.extents(topic).items()):
        offset = extent.start if latest is None else max(extent.start, extent.end - latest)
        while offset < extent.end:
            records = reader.read(topic, partition, offset, SCAN_RECORDS)
            if not records:
                break
            yield from (record for record in records if record.offset < extent.end)
            offset = records[-1].offset + 1


@dataclass(frozen=True)
class Message:
    """One message to be produced."""

    value: bytes | None
    key: bytes | None = None
    headers: Mapping[str, bytes] = field(default_factory=dict)
    idempotency_key: str | None = None


class Sink(Protocol):
    """A producer to any topic of the same log."""

    def send(self, topic: str, messages: Sequence[Message]) -> None:
        """Append messages and return when they are durable.

        A message whose idempotency key the topic already has is not appended again, where the log can
        tell (the embedded log can; Kafka's idempotent producer only within one producer session).

        Raises:
            SourceUnavailable: the log cannot be reached; nothing may be assumed about the messages.
        """
        ...

    def close(self) -> None:
        """Flush and release everything; idempotent."""
        ...
