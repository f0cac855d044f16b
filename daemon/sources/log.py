"""The embedded topic log: topics, partitions and offsets in one SQLite file, without a server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, func, insert, inspect, select, text, update
from sqlalchemy.exc import OperationalError

from daemon.clock import Clock, SystemClock
from daemon.errors import SourceUnavailable, StateVersionMismatch
from daemon.sources.base import Extent, Message, Record
from daemon.sources.log_tables import (
    LOG_VERSION,
    MIGRATIONS,
    idempotency,
    messages,
    metadata,
    partitions,
    topics,
    version,
)
from daemon.sqlite import sqlite_engine, writing

# Databases bound the parameters of one statement; SQLite's oldest bound is 999.
_CHUNK = 500


class EmbeddedLog:
    """A durable log of topics; any thread of any process may append and read.

    Offsets of a partition start at 0, ascend by one and are never given twice, not even after `trim`.

    Raises:
        StateVersionMismatch: another release wrote the file.
        SourceUnavailable: from every method, when the file cannot be read or written now.
    """

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self.path = path
        self._clock = clock or SystemClock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._reader = sqlite_engine(path)
        self._writer = writing(self._reader)
        with self._transaction(write=True) as connection:
            if not inspect(connection).has_table(version.name):
                metadata.create_all(connection)
                connection.execute(insert(version).values(version=LOG_VERSION))
            found: int = connection.scalars(select(version.c.version)).one()
            while found in MIGRATIONS:
                for statement in MIGRATIONS[found]:
                    needs = {"now": self._clock.now()} if ":now" in statement else {}
                    connection.execute(text(statement), needs)
                found += 1
                connection.execute(update(version).values(version=found))
        if found != LOG_VERSION:
            raise StateVersionMismatch(
                f"{path}: log version {found}, this release needs {LOG_VERSION}: "
                "use the release that wrote it, or another state_directory"
            )

    def create_topic(self, topic: str, num_partitions: int = 1) -> None:
        """Create a topic, or do nothing if it is there.

        Raises:
            ValueError: it is there with another number of partitions.
        """
        with self._transaction(write=True) as connection:
            topic_id = _topic_id(connection, topic)
            if topic_id is None:
                _create(connection, topic, num_partitions)
                return
            existing = connection.scalar(
                select(func.count()).select_from(partitions).where(partitions.c.topic_id == topic_id)
            )
            if existing != num_partitions:
                raise ValueError(
                    f"topic {topic!r} has {existing} partitions, not {num_partitions}: use that number"
                )

    def append(self, topic: str, batch: Sequence[Message], partition: int = 0) -> list[int]:
        """Append messages in one transaction and return their offsets; durable on return.

        A topic that is not there is created with one partition. A message whose idempotency key the
        topic already has is not appended again; its offset is that of the first one.

        Raises:
            ValueError: the topic has no such partition.
        """
        with self._transaction(write=True) as connection:
            topic_id = _topic_id(connection, topic)
            if topic_id is None:
                topic_id = _create(connection, topic, 1)
            extent = _extent(connection, topic_id, partition)
            if extent is None:
                raise ValueError(f"topic {topic!r} has no partition {partition}")
            return self._append(connection, topic_id, partition, extent.end, batch)

    def read(
        self, topic: str, partition: int, offset: int, limit: int, max_bytes: int = 64 * 2**20
    ) -> list[Record]:
        """Return records from an offset on, at most `limit` and about `max_bytes` of them.

        Where the partition holds anything from that offset on, at least one record comes back.
        """
        result: list[Record] = []
        size = 0
        with self._transaction() as connection:
            topic_id = _topic_id(connection, topic)
            rows = connection.execute(
                select(messages)
                .where(
                    messages.c.topic_id == topic_id,
                    messages.c.partition == partition,
                    messages.c.offset >= offset,
                )
                .order_by(messages.c.offset)
                .limit(limit)
            )
            for row in rows:
                result.append(
                    Record(
                        topic=topic,
                        partition=partition,
                        offset=row.offset,
                        key=row.key,
                        value=row.value,
                        headers=_decode_headers(row.headers),
                        timestamp=row.timestamp,
                    )
                )
                size += len(row.value or b"")
                if size >= max_bytes:
                    rows.close()
                    break
        return result

    def extents(self, topic: str) -> Mapping[int, Extent]:
        """Return what each partition of a topic holds; nothing for a topic that is not there."""
        with self._transaction() as connection:
            rows = connection.execute(
                select(partitions.c.partition, partitions.c.start_offset, partitions.c.end_offset)
                .join(topics, topics.c.id == partitions.c.topic_id)
                .where(topics.c.name == topic)
                .order_by(partitions.c.partition)
            )
            return {row.partition: Extent(row.start_offset, row.end_offset) for row in rows}

    def end_offset(self, topic: str, partition: int = 0) -> int:
        """Return the next offset to be given; 0 for a topic that is not there."""
        extent = self.extents(topic).get(partition)
        return 0 if extent is None else extent.end

    def timestamp(self, topic: str, partition: int, offset: int) -> float | None:
        """Return when the first record from an offset on was appended, None if there is none."""
        with self._transaction() as connection:
            return connection.scalar(
                select(messages.c.timestamp)
                .join(topics, topics.c.id == messages.c.topic_id)
                .where(
                    topics.c.name == topic,
                    messages.c.partition == partition,
                    messages.c.offset >= offset,
                )
                .order_by(messages.c.offset)
                .limit(1)
            )

    def topics(self) -> list[str]:
        """List the topics by name."""
        with self._transaction() as connection:
            return list(connection.scalars(select(topics.c.name).order_by(topics.c.name)))

    def trim(self, topic: str, before_offset: int, partition: int = 0) -> int:
        """Delete the records before an offset and return how many there were.

        Their idempotency keys stay known, so that a late retry is still recognised.
        """
        with self._transaction(write=True) as connection:
            topic_id = _topic_id(connection, topic)
            extent = None if topic_id is None else _extent(connection, topic_id, partition)
            if extent is None:
                return 0
            start = max(extent.start, min(before_offset, extent.end))
            deleted = connection.execute(
                delete(messages).where(
                    messages.c.topic_id == topic_id,
                    messages.c.partition == partition,
                    messages.c.offset < start,
                )
            )
            connection.execute(
                update(partitions)
                .where(partitions.c.topic_id == topic_id, partitions.c.partition == partition)
                .values(start_offset=start)
            )
            return deleted.rowcount

    def forget_keys(self, topic: str, before: float, limit: int) -> int:
        """Forget a topic's oldest idempotency keys noted before a time; return how many, at most `limit`."""
        with self._transaction(write=True) as connection:
            topic_id = _topic_id(connection, topic)
            old = connection.scalars(
                select(idempotency.c.key)
                .where(idempotency.c.topic_id == topic_id, idempotency.c.noted_at < before)
                .order_by(idempotency.c.noted_at)
                .limit(limit)
            ).all()
            for start in range(0, len(old), _CHUNK):
                connection.execute(
                    delete(idempotency).where(
                        idempotency.c.topic_id == topic_id, idempotency.c.key.in_(old[start : start + _CHUNK])
                    )
                )
            return len(old)

    def key_count(self) -> int:
        """Count the idempotency keys that are remembered, of all topics."""
        with self._transaction() as connection:
            return connection.scalar(select(func.count()).select_from(idempotency)) or 0

    def close(self) -> None:
        """Release every connection; idempotent."""
        self._reader.dispose()

    def _append(
        self, connection: Connection, topic_id: int, partition: int, end: int, batch: Sequence[Message]
    ) -> list[int]:
        given = _given_offsets(connection, topic_id, [m.idempotency_key for m in batch])
        timestamp = self._clock.now()
        rows: list[dict[str, Any]] = []
        new_keys: list[dict[str, Any]] = []
        result: list[int] = []
        for message in batch:
            offset = given.get(message.idempotency_key) if message.idempotency_key is not None else None
            if offset is None:
                offset = end + len(rows)
                rows.append(
                    {
                        "topic_id": topic_id,
                        "partition": partition,
                        "offset": offset,
                        "timestamp": timestamp,
                        "headers": _encode_headers(message.headers),
                        "key": message.key,
                        "value": message.value,
                    }
                )
                if message.idempotency_key is not None:
                    given[message.idempotency_key] = offset
                    new_keys.append(
                        {
                            "topic_id": topic_id,
                            "key": message.idempotency_key,
                            "partition": partition,
                            "offset": offset,
                            "noted_at": timestamp,
                        }
                    )
            result.append(offset)
        if rows:
            connection.execute(insert(messages), rows)
            connection.execute(
                update(partitions)
                .where(partitions.c.topic_id == topic_id, partitions.c.partition == partition)
                .values(end_offset=end + len(rows))
            )
        if new_keys:
            connection.execute(insert(idempotency), new_keys)
        return result

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[Connection]:
        try:
            with (self._writer if write else self._reader).begin() as connection:
                yield connection
        except OperationalError as error:
            raise SourceUnavailable(f"{self.path}: the topic log cannot be used now: {error.orig}") from error


def _topic_id(connection: Connection, topic: str) -> int | None:
    return connection.scalar(select(topics.c.id).where(topics.c.name == topic))


def _create(connection: Connection, topic: str, num_partitions: int) -> int:
    if num_partitions < 1:
        raise ValueError(f"topic {topic!r}: num_partitions is {num_partitions}, it must be at least 1")
    connection.execute(insert(topics).values(name=topic))
    topic_id = _topic_id(connection, topic)
    assert topic_id is not None
    connection.execute(
        insert(partitions),
        [
            {"topic_id": topic_id, "partition": n, "start_offset": 0, "end_offset": 0}
            for n in range(num_partitions)
        ],
    )
    return topic_id


def _extent(connection: Connection, topic_id: int, partition: int) -> Extent | None:
    row = connection.execute(
        select(partitions.c.start_offset, partitions.c.end_offset).where(
            partitions.c.topic_id == topic_id, partitions.c.partition == partition
        )
    ).one_or_none()
    return None if row is None else Extent(row.start_offset, row.end_offset)


def _given_offsets(connection: Connection, topic_id: int, keys: Sequence[str | None]) -> dict[str, int]:
    wanted = [key for key in keys if key is not None]
    found: dict[str, int] = {}
    for start in range(0, len(wanted), _CHUNK):
        rows = connection.execute(
            select(idempotency.c.key, idempotency.c.offset).where(
                idempotency.c.topic_id == topic_id, idempotency.c.key.in_(wanted[start : start + _CHUNK])
            )
        )
        found.update({row.key: row.offset for row in rows})
    return found


# Latin-1 maps every byte to one character and back, whatever the producer put into a header.
def _encode_headers(headers: Mapping[str, bytes]) -> str:
    return json.dumps({name: value.decode("latin-1") for name, value in headers.items()})


def _decode_headers(text: str) -> dict[str, bytes]:
    return {name: value.encode("latin-1") for name, value in json.loads(text).items()}
