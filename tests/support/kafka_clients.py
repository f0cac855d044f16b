"""Plain clients for tests: what other people's producers and consumers would do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from daemon.clock import SystemClock
from daemon.errors import SourceUnavailable
from daemon.settings import KafkaSource as KafkaSettings
from daemon.settings import LogSettings
from daemon.sources.base import Place, Record
from daemon.sources.kafka import KafkaSource
from daemon.sources.kafka.process import ProcessKafkaSource
from daemon.sources.kafka.reader import KafkaReader, group_offsets

AnyKafkaSource = KafkaSource | ProcessKafkaSource


def kafka_settings(address: str, topic: str, **changes: object) -> KafkaSettings:
    """Return settings with patience fit for a test; the group is the topic's own."""
    values: dict[str, object] = {
        "bootstrap_servers": [address],
        "topic": topic,
        "group_id": f"group-{topic}",
        "session_timeout_seconds": 6.0,
        "heartbeat_seconds": 0.5,
        "connect_timeout_seconds": 10.0,
        "request_timeout_seconds": 3.0,
        "unreachable_seconds": 3.0,
        "delivery_timeout_seconds": 5.0,
    }
    return KafkaSettings.model_validate(values | changes)


def new_source(settings: KafkaSettings) -> AnyKafkaSource:
    """Return a source on the machine's clock, in a process of its own if the settings say so."""
    if settings.process:
        return ProcessKafkaSource(settings, LogSettings(), SystemClock())
    return KafkaSource(settings, SystemClock())


def produce(address: str, topic: str, values: Sequence[bytes], partition: int = 0) -> None:
    """Append values to one partition, confirmed."""
    producer = KafkaProducer(bootstrap_servers=address)
    try:
        futures = [producer.send(topic, value=value, partition=partition) for value in values]
        producer.flush(30)
        for future in futures:
            future.get(30)
    finally:
        producer.close(10)


def numbers(first: int, end: int) -> list[bytes]:
    """Values that tell their position."""
    return [b"%d" % i for i in range(first, end)]


def committed(address: str, topic: str, partition: int = 0) -> int | None:
    """Return what the broker says the test's group has committed."""
    consumer = KafkaConsumer(bootstrap_servers=address, group_id=f"group-{topic}", enable_auto_commit=False)
    try:
        offset: int | None = consumer.committed(TopicPartition(topic, partition), timeout_ms=10_000)
        return offset
    finally:
        consumer.close()


def committed_offsets(settings: KafkaSettings) -> dict[int, tuple[int, int]]:
    """Return what a group has committed of each partition of its topic, and where the log ends."""
    reader = KafkaReader(settings)
    try:
        ends = {partition: extent.end for partition, extent in reader.extents(settings.topic).items()}
    finally:
        reader.close()
    found = group_offsets(settings, ends)
    return {partition: (found.get(partition, 0), end) for partition, end in ends.items()}


def commit_as_group(address: str, topic: str, offset: int, partition: int = 0) -> None:
    """Commit in the test's group, as a member that is gone again."""
    admin = KafkaAdminClient(bootstrap_servers=address)
    consumer = KafkaConsumer(bootstrap_servers=address, group_id=f"group-{topic}", enable_auto_commit=False)
    try:
        place = TopicPartition(topic, partition)
        consumer.assign([place])
        consumer.seek(place, offset)
        consumer.commit()
    finally:
        consumer.close()
        admin.close()


def delete_before(address: str, topic: str, offset: int, partition: int = 0) -> None:
    """Do what retention does: remove the records below an offset."""
    admin = KafkaAdminClient(bootstrap_servers=address)
    try:
        admin.delete_records({TopicPartition(topic, partition): offset})
    finally:
        admin.close()


def drain(source: AnyKafkaSource, count: int, *, commit: bool = True, seconds: float = 30.0) -> list[Record]:
    """Take records until there are so many, committing as intake does; outages are waited out."""
    taken: list[Record] = []
    deadline = time.monotonic() + seconds
    while len(taken) < count and time.monotonic() < deadline:
        try:
            records = source.poll(0.2, 500)
        except SourceUnavailable:
            continue
        taken += records
        if commit and records:
            source.commit({record.place: record.offset + 1 for record in records})
    return taken


def eventually(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Wait until something another process does has happened."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.1)
    return False


@contextmanager
def started(settings: KafkaSettings, stored: dict[Place, int] | None = None) -> Iterator[AnyKafkaSource]:
    """Start a source that is closed whatever happens."""
    source = new_source(settings)
    try:
        source.start(stored or {})
        yield source
    finally:
        source.close()


def offsets(records: list[Record], partition: int = 0) -> list[int]:
    """Return the offsets of one partition's records, in order of arrival."""
    return [record.offset for record in records if record.partition == partition]
