"""What intake's parts cost by themselves, and what of it is spent outside Python.

`Floor` is the work that no implementation in any language leaves out as long as a sample is checked, has the
digest of its content as its id, and is durable in files and rows: each of its steps is a loop around one
call of a C library, over inputs made before.
"""

from __future__ import annotations

import hashlib
import sqlite3
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
from daemon.state import SqlState
from daemon.state.base import NewSample
from daemon.state.payload_files import PayloadFiles

STREAM = "bench"
# Stored in one transaction, as under load.
STORED_TOGETHER = 4000

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
    """Repeat the work of the C libraries; `empty` becomes as `stored`."""
    files = PayloadFiles(empty / "payloads")
    with closing(sqlite3.connect(stored / "state.db")) as filled:
        named_classes = filled.execute("SELECT * FROM classes").fetchall()
        columns = [column for _, column, *_ in filled.execute("PRAGMA table_info(samples)")]
        rows = filled.execute("SELECT * FROM samples ORDER BY seq").fetchall()
    with closing(sqlite3.connect(empty / "state.db", isolation_level=None)) as database:
        # As `daemon.sqlite` has it.
        database.execute("PRAGMA synchronous=FULL")
        database.execute("PRAGMA foreign_keys=ON")
        database.executemany(f"INSERT INTO classes VALUES ({_marks(named_classes[0])})", named_classes)
        sorted_rows = [
            sorted(piece, key=lambda row: row[columns.index("digest")]) for piece in _transactions(rows)
        ]
        inserted = [[row[1:] for row in piece] for piece in sorted_rows]
        names = ", ".join(f'"{column}"' for column in columns[1:])
        statement = f"INSERT INTO samples ({names}) VALUES ({_marks(inserted[0][0])})"

        def insert() -> None:
            for piece in inserted:
                database.execute("BEGIN IMMEDIATE")
                database.executemany(statement, piece)
                database.execute("COMMIT")

        try:
            return Floor(
                digest=_processor(lambda: [hashlib.sha256(payload).digest() for payload in payloads]),
                checksum=_processor(lambda: [crc32(payload) for payload in payloads]),
                payloads=_processor(lambda: [files.append(piece) for piece in _transactions(payloads)]),
                rows=_processor(insert),
            )
        finally:
            files.close()


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
