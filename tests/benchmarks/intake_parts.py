"""What intake's parts cost by themselves, and what of it is spent outside Python.

`Floor` is the work that no implementation in any language leaves out as long as a sample is checked, has the
digest of its content as its id, and is durable in files and rows: each of its steps is a loop around one
call of a C library, over inputs made before.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeVar
from zlib import crc32

from daemon.clock import SystemClock
from daemon.messages.parse import ParsedRecord, parse_record
from daemon.settings import LimitSettings
from daemon.sources.base import Message, Record
from daemon.sqlite import sqlite_engine
from daemon.state import SqlState
from daemon.state.base import NewSample

STREAM = "bench"
# Stored in one transaction, as under load.
STORED_TOGETHER = 4000
# Buffers of one call, on Linux.
IOV_MAX = 1024

T = TypeVar("T")


class Floor(NamedTuple):
    """Processor seconds per image.

    Attributes:
        digest: SHA-256 of the payload.
        checksum: CRC-32 of the payload, which a PNG is checked by.
        payloads: writing the payloads durably.
        rows: inserting the finished rows in durable transactions, sorted as intake does.
    """

    digest: float
    checksum: float
    payloads: float
    rows: float


class Parts(NamedTuple):
    """Processor seconds per image.

    Attributes:
        parse: parsing and checking, in one thread alone.
        store: storing, in one thread alone.
        floor: what of the two happens outside Python.
    """

    parse: float
    store: float
    floor: Floor


def parts_cpu(messages: Sequence[Message]) -> Parts:
    """Measure the parts on the messages of one topic, one after another."""
    records = [
        Record(STREAM, 0, offset, message.key, message.value, message.headers)
        for offset, message in enumerate(messages)
    ]
    # pyarrow is imported with the first batch that needs it.
    parse_record(records[0], LimitSettings(), None)
    parsed: list[ParsedRecord] = []
    parsing = _processor(
        lambda: parsed.extend(parse_record(record, LimitSettings(), None) for record in records)
    )
    samples = [sample for item in parsed for sample in item.samples]
    count = len(samples)
    with tempfile.TemporaryDirectory() as directory:
        stored, empty = Path(directory) / "stored", Path(directory) / "empty"
        state = _open(stored)
        storing = _processor(lambda: _store(state, samples))
        state.close()
        _open(empty).close()
        floor = _floor([sample.payload for sample in samples], stored, empty)
    return Parts(parsing / count, storing / count, Floor(*(part / count for part in floor)))


def _open(directory: Path) -> SqlState:
    return SqlState.open(directory, holdout_fraction={STREAM: 0.2}, clock=SystemClock())


def _store(state: SqlState, samples: Sequence[NewSample]) -> None:
    for piece in _transactions(samples):
        state.store(STREAM, piece, [], {piece[-1].place: piece[-1].offset + 1})


def _floor(payloads: Sequence[bytes], stored: Path, empty: Path) -> Floor:
    """Repeat the work of the C libraries; `empty` gets the payloads and rows of `stored`."""
    source, target = (sqlite_engine(directory / "state.db") for directory in (stored, empty))
    with closing(source.raw_connection()) as filled:
        cursor = filled.cursor()
        named_classes = cursor.execute("SELECT * FROM classes").fetchall()
        columns = [column for _, column, *_ in cursor.execute("PRAGMA table_info(samples)")]
        rows = cursor.execute("SELECT * FROM samples ORDER BY seq").fetchall()
    digest = columns.index("digest")
    pieces = [sorted(piece, key=lambda row: row[digest]) for piece in _transactions(rows)]
    buffers = [
        [payloads[start : start + IOV_MAX] for start in range(0, len(payloads), IOV_MAX)]
        for payloads in _transactions(payloads)
    ]
    descriptor = os.open(empty / "payloads.bin", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write() -> None:
        for together in buffers:
            for piece in together:
                os.writev(descriptor, piece)
            os.fdatasync(descriptor)

    with closing(target.raw_connection()) as connection:
        cursor = connection.cursor()
        cursor.executemany(f"INSERT INTO classes VALUES ({_marks(named_classes[0])})", named_classes)
        statement = f"INSERT INTO samples VALUES ({_marks(rows[0])})"

        def insert() -> None:
            for piece in pieces:
                cursor.execute("BEGIN IMMEDIATE")
                cursor.executemany(statement, piece)
                cursor.execute("COMMIT")

        floor = Floor(
            digest=_processor(lambda: [hashlib.sha256(payload).digest() for payload in payloads]),
            checksum=_processor(lambda: [crc32(payload) for payload in payloads]),
            payloads=_processor(write),
            rows=_processor(insert),
        )
    os.close(descriptor)
    source.dispose()
    target.dispose()
    return floor


def _marks(row: Sequence[object]) -> str:
    return ", ".join("?" * len(row))


def _transactions(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), STORED_TOGETHER):
        yield items[start : start + STORED_TOGETHER]


def _processor(work: Callable[[], object]) -> float:
    """Return the processor seconds that the work takes, the operating system's on its behalf included."""
    begun = time.process_time()
    work()
    return time.process_time() - begun
