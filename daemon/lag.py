"""How far a stream is behind its topic, asked from outside the daemon."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from daemon.clock import Clock
from daemon.settings import KafkaSource, Settings
from daemon.sources import labelled_topic
from daemon.sources.base import Place, Reader
from daemon.state import SqlState


@dataclass(frozen=True)
class PartitionLag:
    """How far behind one partition is.

    Attributes:
        end: next offset the log will give.
        next: next offset wanted; None if nothing is known, and all of the log counts as lag.
        known_from: whether the state or the consumer group says so.
        records: not stored yet.
        seconds: age of the oldest of them, 0 if there is none.
    """

    partition: int
    end: int
    next: int | None
    known_from: str
    records: int
    seconds: float


def partition_lags(settings: Settings, stream: str, reader: Reader, clock: Clock) -> Iterator[PartitionLag]:
    """Compare the log's ends with what the state has, or with the consumer group where there is no state.

    Args:
        settings: of the daemon.
        stream: the stream's name.
        reader: of the stream's log.
        clock: time.

    Raises:
        SourceUnavailable: the log cannot be reached.
        StateError: the state cannot be read.
    """
    source = settings.streams[stream].source
    topic = labelled_topic(stream, source)
    extents = reader.extents(topic)
    stored = _stored(settings, stream, clock)
    group: dict[int, int] = {}
    if isinstance(source, KafkaSource) and any(Place(topic, p) not in stored for p in extents):
        from daemon.sources.kafka.reader import group_offsets

        group = group_offsets(source, extents)
    for partition, extent in sorted(extents.items()):
        wanted = stored.get(Place(topic, partition))
        known_from = "state" if wanted is not None else "group" if partition in group else ""
        wanted = group.get(partition) if wanted is None else wanted
        first = max(extent.start, extent.start if wanted is None else wanted)
        waiting = reader.read(topic, partition, first, 1) if first < extent.end else ()
        seconds = max(0.0, clock.now() - waiting[0].timestamp) if waiting else 0.0
        records = max(0, extent.end - first)
        yield PartitionLag(partition, extent.end, wanted, known_from, records, seconds)


def _stored(settings: Settings, stream: str, clock: Clock) -> dict[Place, int]:
    if not (settings.state_directory / "state.db").exists():
        return {}
    state = SqlState.open(settings.state_directory, holdout_fraction={}, clock=clock, read_only=True)
    try:
        return dict(state.next_offsets(stream))
    finally:
        state.close()
