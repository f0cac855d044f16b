"""Where a stream's messages come from, behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


@dataclass(frozen=True)
class Record:
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
    headers: Mapping[str, bytes] = field(default_factory=dict)
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

    def close(self) -> None:
        """Leave the group and release everything; idempotent."""
        ...


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
