"""What happens to the tables when samples arrive; each function is part of one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, TypeVar

from sqlalchemy import Connection, delete, func, insert, select, update

from daemon.errors import LabelForgotten
from daemon.sources.base import Place
from daemon.sqlite import max_parameters
from daemon.state.base import ClassState, NewSample, StoreResult, StreamCounts
from daemon.state.digest import digests
from daemon.state.holdout import holdout_bound
from daemon.state.payload_files import PayloadFiles, Span
from daemon.state.schema import classes, offsets, samples, totals

# Databases bound the parameters of one statement; SQLite's oldest bound is 999.
_CHUNK = 900

# Rows of one statement.
_MOST_ROWS = 1024

# Classes in these states take no samples.
REFUSED = (ClassState.FORGETTING.value, ClassState.FORGOTTEN.value)

T = TypeVar("T")


def chunks(items: Sequence[T], size: int = _CHUNK) -> Iterator[Sequence[T]]:
    """Cut a sequence into pieces that fit one statement's parameters."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def store(
    connection: Connection,
    payloads: PayloadFiles,
    stream: str,
    arrived: Sequence[NewSample],
    dead_lettered: int,
    next_offsets: Mapping[Place, int],
    *,
    fraction: float,
    now: float,
) -> StoreResult:
    """Insert new samples and classes, add to the totals and move the offsets.

    Raises:
        LabelForgotten: a label is of a class that takes no samples.
    """
    arrived_digests = digests(stream, (sample.id for sample in arrived))
    known = _known(connection, arrived_digests)
    duplicate_ids = set()
    fresh = dict(zip(arrived_digests, arrived, strict=True))
    if known or len(fresh) < len(arrived):
        fresh.clear()
        for digest, sample in zip(arrived_digests, arrived, strict=True):
            if digest in known:
                duplicate_ids.add(sample.id)
            else:
                fresh.setdefault(digest, sample)
    class_ids, new_class_ids = _class_ids(connection, stream, (s.label for s in fresh.values()), now)
    if fresh:
        # Before the rows are written: what a row refers to is always there.
        spans = payloads.append([sample.payload for sample in fresh.values()])
        rows = _rows(stream, fresh, class_ids, spans, holdout_bound(fraction), now)
        # Neighbours in the index one after another: in order of arrival, each digest would be searched for
        # from the root, and its page looked up again.
        rows.sort(key=_DIGEST)
        _insert(connection, rows)
    _add_totals(connection, stream, len(fresh), len(arrived) - len(fresh), dead_lettered)
    for place, offset in next_offsets.items():
        move_offset(connection, stream, place, offset)
    return StoreResult(
        stored=len(fresh),
        duplicate_ids=frozenset(duplicate_ids),
        dead_lettered=dead_lettered,
        new_class_ids=new_class_ids,
    )


def withdraw(connection: Connection, stream: str, ids: Sequence[str]) -> None:
    """Delete samples and count them as dead letters, so that the totals still add up."""
    for piece in chunks(ids):
        deleted = connection.execute(
            delete(samples).where(samples.c.digest.in_(digests(stream, piece)))
        ).rowcount
        _add_totals(connection, stream, -deleted, 0, deleted)


def next_offsets(connection: Connection, stream: str) -> dict[Place, int]:
    """Read the next offset wanted per partition."""
    rows = connection.execute(
        select(offsets.c.topic, offsets.c.partition, offsets.c.next_offset).where(offsets.c.stream == stream)
    )
    return {Place(row.topic, row.partition): row.next_offset for row in rows}


def counts(connection: Connection, stream: str) -> StreamCounts:
    """Read the durable totals."""
    row = connection.execute(select(totals).where(totals.c.stream == stream)).one_or_none()
    return (
        StreamCounts(0, 0, 0) if row is None else StreamCounts(row.stored, row.duplicate, row.dead_lettered)
    )


def _rows(
    stream: str,
    fresh: Mapping[bytes, NewSample],
    class_ids: Mapping[str, int],
    spans: Sequence[Span],
    bound: bytes,
    now: float,
) -> list[tuple[Any, ...]]:
    """Return the values of `_COLUMNS` for samples by digest; a column at a time, for the sake of speed."""
    # The payloads are where the spans say.
    ids, labels, content_types, _, places, offset, positions, timestamps = zip(*fresh.values(), strict=True)
    rows = zip(
        repeat(stream),
        ids,
        fresh,
        [class_ids[label] for label in labels],
        [digest < bound for digest in fresh],
        repeat(now),
        timestamps,
        *zip(*places, strict=True),
        offset,
        positions,
        content_types,
        *zip(*spans, strict=True),
        strict=False,
    )
    return list(rows)


_COLUMNS = (
    "stream",
    "id",
    "digest",
    "class_id",
    "holdout",
    "arrived_at",
    "timestamp",
    "topic",
    "partition",
    "offset",
    "position",
    "content_type",
    "file",
    "start",
    "length",
)
_DIGEST = itemgetter(_COLUMNS.index("digest"))


def _insert(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows of `_COLUMNS`, in what the driver takes.

    SQLAlchemy's own way from a mapping to the driver's parameters costs as much per row as the insertion.
    """
    statement = insert(samples).compile(dialect=connection.dialect, column_keys=_COLUMNS)
    if statement.positional:
        assert statement.positiontup == list(_COLUMNS)
        before, values = str(statement).split(" VALUES ")
        start = 0
        for size in piece_sizes(len(rows), max_parameters(connection) // len(_COLUMNS)):
            piece = rows[start : start + size]
            several = ", ".join([values] * size)
            connection.exec_driver_sql(f"{before} VALUES {several}", tuple(chain.from_iterable(piece)))
            start += size
    else:
        connection.exec_driver_sql(str(statement), [dict(zip(_COLUMNS, row, strict=True)) for row in rows])


def piece_sizes(rows: int, largest: int) -> Iterator[int]:
    """Cut rows into few statements of few sizes, of at most `largest` rows.

    With every statement the driver lets other threads run and then waits for its turn again; and it prepares
    a statement of each size once, as long as there are not too many of them.
    """
    size = min(1 << (largest.bit_length() - 1), _MOST_ROWS)
    while rows:
        while size > rows:
            size //= 2
        yield size
        rows -= size


def _known(connection: Connection, wanted: Sequence[bytes]) -> set[bytes]:
    """Read which digests there are; as `_insert`, in what the driver takes."""
    known: set[bytes] = set()
    for piece in chunks(wanted):
        if connection.dialect.positional:
            marks = ", ".join("?" * len(piece))
            statement = f"SELECT digest FROM samples WHERE digest IN ({marks})"  # noqa: S608 - only marks
            known.update(connection.exec_driver_sql(statement, tuple(piece)).scalars())
        else:
            known.update(connection.scalars(select(samples.c.digest).where(samples.c.digest.in_(piece))))
    return known


def _class_ids(
    connection: Connection, stream: str, labels: Iterable[str], now: float
) -> tuple[dict[str, int], tuple[int, ...]]:
    wanted = list(dict.fromkeys(labels))
    found: dict[str, int] = {}
    for piece in chunks(wanted):
        rows = connection.execute(
            select(classes.c.label, classes.c.id, classes.c.state).where(
                classes.c.stream == stream, classes.c.label.in_(piece)
            )
        ).all()
        refused = [row.label for row in rows if row.state in REFUSED]
        if refused:
            raise LabelForgotten(f"stream {stream!r}: classes {refused} take no samples: they are forgotten")
        found.update({row.label: row.id for row in rows})
    new = [label for label in wanted if label not in found]
    if not new:
        return found, ()
    last = connection.scalar(select(func.max(classes.c.id)).where(classes.c.stream == stream))
    first = 0 if last is None else last + 1
    numbered = {label: first + n for n, label in enumerate(new)}
    connection.execute(
        insert(classes),
        [
            {"stream": stream, "id": n, "label": label, "state": ClassState.PENDING.value, "first_seen": now}
            for label, n in numbered.items()
        ],
    )
    return found | numbered, tuple(numbered.values())


def _add_totals(connection: Connection, stream: str, stored: int, duplicate: int, dead_lettered: int) -> None:
    # The caller holds the write lock, so nobody inserts the row between the update and the insert.
    updated = connection.execute(
        update(totals)
        .where(totals.c.stream == stream)
        .values(
            stored=totals.c.stored + stored,
            duplicate=totals.c.duplicate + duplicate,
            dead_lettered=totals.c.dead_lettered + dead_lettered,
        )
    )
    if updated.rowcount == 0:
        connection.execute(
            insert(totals).values(
                stream=stream, stored=stored, duplicate=duplicate, dead_lettered=dead_lettered
            )
        )


def move_offset(connection: Connection, stream: str, place: Place, offset: int) -> None:
    """Set the next offset wanted of a partition."""
    updated = connection.execute(
        update(offsets)
        .where(
            offsets.c.stream == stream,
            offsets.c.topic == place.topic,
            offsets.c.partition == place.partition,
        )
        .values(next_offset=offset)
    )
    if updated.rowcount == 0:
        connection.execute(
            insert(offsets).values(
                stream=stream, topic=place.topic, partition=place.partition, next_offset=offset
            )
        )
