"""Looking into topics of a Kafka cluster without a consumer group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import structlog
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors

from daemon import settings as config
from daemon.errors import SourceUnavailable
from daemon.sources.base import Extent, Place, Record
from daemon.sources.kafka.pump import as_record
from daemon.sources.kafka.security import connection_options, describe_failure
from daemon.sources.transactions import Position

log = structlog.get_logger(__name__)

POLL_MS = 250
CLOSE_MS = 2000

T = TypeVar("T")


class KafkaReader:
    """A `Reader` of a cluster's topics; connects at the first call and again after a failure.

    Args:
        settings: the cluster; the topic it names is not used.
    """

    def __init__(self, settings: config.KafkaSource) -> None:
        self._settings = settings
        self._consumer: KafkaConsumer | None = None

    def extents(self, topic: str) -> Mapping[int, Extent]:
        """Return what each partition holds; nothing for a topic that is not there.

        Raises:
            SourceUnavailable: no broker answers, or access is refused.
        """
        return self._ask(lambda consumer: _extents(consumer, topic, self._timeout_ms))

    def read(self, topic: str, partition: int, offset: int, limit: int) -> Sequence[Record]:
        """Return the next records from an offset on; none once the end has been reached.

        Raises:
            SourceUnavailable: no broker answers within `request_timeout_seconds`, access is refused, or
                retention has removed the offset since the extents were asked for.
        """
        return self._ask(
            lambda consumer: self._read(consumer, TopicPartition(topic, partition), offset, limit)
        )

    def close(self) -> None:
        """Release the connections; idempotent."""
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        try:
            consumer.close(timeout_ms=CLOSE_MS)
        except kafka_errors.KafkaError as error:
            log.info("kafka.close_failed", error=str(error))

    @property
    def _timeout_ms(self) -> int:
        return round(self._settings.request_timeout_seconds * 1000)

    def _ask(self, question: Callable[[KafkaConsumer], T]) -> T:
        try:
            if self._consumer is None:
                self._consumer = _connect(self._settings, None)
            return question(self._consumer)
        except (kafka_errors.KafkaError, OSError) as error:
            self.close()
            raise SourceUnavailable(describe_failure(self._settings, error)) from error

    def _read(self, consumer: KafkaConsumer, tp: TopicPartition, offset: int, limit: int) -> list[Record]:
        end = consumer.end_offsets([tp], timeout_ms=self._timeout_ms)[tp]
        if offset >= end:
            return []
        consumer.assign([tp])
        consumer.seek(tp, offset)
        deadline = time.monotonic() + self._settings.request_timeout_seconds
        while time.monotonic() < deadline:
            records = consumer.poll(timeout_ms=POLL_MS, max_records=limit).get(tp, [])
            if records:
                return [as_record(record) for record in records]
            # What is left may be markers of transactions, which are no records.
            if (consumer.position(tp, timeout_ms=self._timeout_ms) or 0) >= end:
                return []
        raise SourceUnavailable(
            f"topic {tp.topic} partition {tp.partition}: no record from offset {offset} on within "
            f"{self._settings.request_timeout_seconds:g} s, though the log ends at {end}"
        )


def group_offsets(settings: config.KafkaSource, partitions: Iterable[int]) -> dict[int, int]:
    """Return what the consumer group has committed of the labelled topic, without joining it.

    Raises:
        SourceUnavailable: no broker answers, or access is refused.
    """
    wanted = [TopicPartition(settings.topic, partition) for partition in partitions]
    found = _committed(settings, settings.group_id, wanted)
    return {tp.partition: committed.offset for tp, committed in found.items()}


def group_positions(
    settings: config.KafkaSource, group: str, places: Iterable[Place]
) -> dict[Place, Position]:
    """Return what a group has committed of some partitions, with its notes, without joining the group.

    With `isolation_level` at `read_committed` this waits for transactions that are committing.

    Raises:
        SourceUnavailable: no broker answers, or access is refused.
    """
    found = _committed(settings, group, [TopicPartition(*place) for place in places])
    return {
        Place(tp.topic, tp.partition): Position(committed.offset, committed.metadata or "")
        for tp, committed in found.items()
    }


def _committed(
    settings: config.KafkaSource, group: str, wanted: Iterable[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    timeout_ms = round(settings.request_timeout_seconds * 1000)
    try:
        consumer = _connect(settings, group)
        try:
            found = {tp: consumer.committed(tp, metadata=True, timeout_ms=timeout_ms) for tp in wanted}
        finally:
            consumer.close(timeout_ms=CLOSE_MS)
    except (kafka_errors.KafkaError, OSError) as error:
        raise SourceUnavailable(describe_failure(settings, error)) from error
    return {tp: committed for tp, committed in found.items() if committed is not None}


def _connect(settings: config.KafkaSource, group: str | None) -> KafkaConsumer:
    return KafkaConsumer(
        **connection_options(settings),
        group_id=group,
        isolation_level=settings.isolation_level,
        fetch_max_bytes=settings.fetch_bytes,
        max_partition_fetch_bytes=settings.partition_fetch_bytes,
        enable_auto_commit=False,
        auto_offset_reset="none",
        allow_auto_create_topics=False,
        fetch_max_wait_ms=POLL_MS,
        metrics_enabled=False,
    )


def _extents(consumer: KafkaConsumer, topic: str, timeout_ms: int) -> dict[int, Extent]:
    partitions = [TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)]
    if not partitions:
        return {}
    beginnings = consumer.beginning_offsets(partitions, timeout_ms=timeout_ms)
    ends = consumer.end_offsets(partitions, timeout_ms=timeout_ms)
    return {tp.partition: Extent(beginnings[tp], ends[tp]) for tp in sorted(partitions)}
