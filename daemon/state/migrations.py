"""From the tables of an earlier release to those of this one, without losing a row.

Each step is written out here and never changed, whatever becomes of the tables later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import structlog
from sqlalchemy import Connection, select, text, update

from daemon.state.payload_files import PayloadFiles
from daemon.state.schema import owner

log = structlog.get_logger(__name__)

Step = Callable[[Connection, PayloadFiles], None]

# Rows whose payloads are in memory together.
_ROWS_AT_ONCE = 128

_SAMPLES_4 = """
CREATE TABLE samples (
    seq INTEGER NOT NULL,
    stream TEXT NOT NULL,
    id TEXT NOT NULL,
    class_id INTEGER NOT NULL,
    holdout BOOLEAN NOT NULL,
    session INTEGER,
    arrived_at FLOAT NOT NULL,
    timestamp FLOAT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    "offset" BIGINT NOT NULL,
    position INTEGER NOT NULL,
    content_type TEXT NOT NULL,
    file INTEGER NOT NULL,
    start BIGINT NOT NULL,
    length INTEGER NOT NULL,
    PRIMARY KEY (seq),
    UNIQUE (stream, id),
    FOREIGN KEY(stream, class_id) REFERENCES classes (stream, id)
)
"""
_SAMPLE_COLUMNS = (
    "seq, stream, id, class_id, holdout, session, arrived_at, timestamp, topic, partition, "
    '"offset", position, content_type'
)


def _to_4(connection: Connection, payloads: PayloadFiles) -> None:
    """Move the payloads into files, and give sessions and commands their new columns.

    Commands taken before have no date: nothing says how old theirs may be when they come again.
    """
    for statement in (
        "ALTER TABLE sessions ADD COLUMN forgets INTEGER",
        "ALTER TABLE commands ADD COLUMN dated FLOAT",
        "CREATE INDEX commands_dated ON commands (dated)",
        "CREATE TABLE erasures (file INTEGER NOT NULL, start BIGINT NOT NULL, length INTEGER NOT NULL, "
        "PRIMARY KEY (file, start, length))",
        "DROP INDEX samples_buffers",
        "ALTER TABLE samples RENAME TO samples_2",
        _SAMPLES_4,
        "CREATE INDEX samples_buffers ON samples (stream, holdout, session, class_id, arrived_at)",
    ):
        connection.execute(text(statement))
    page = text("SELECT seq, payload FROM samples_2 WHERE seq > :after ORDER BY seq LIMIT :rows")
    move = text(
        f"INSERT INTO samples ({_SAMPLE_COLUMNS}, file, start, length) "  # noqa: S608 - names of our own
        f"SELECT {_SAMPLE_COLUMNS}, :file, :start, :length FROM samples_2 WHERE seq = :seq"
    )
    after = -1
    while rows := connection.execute(page, {"after": after, "rows": _ROWS_AT_ONCE}).all():
        spans = payloads.append([row.payload for row in rows])
        connection.execute(
            move, [{"seq": row.seq, **span._asdict()} for row, span in zip(rows, spans, strict=True)]
        )
        after = rows[-1].seq
    connection.execute(text("DROP TABLE samples_2"))


_SAMPLES_5 = _SAMPLES_4.replace("id TEXT NOT NULL,", "id TEXT NOT NULL,\n    digest BLOB NOT NULL,").replace(
    "UNIQUE (stream, id)", "UNIQUE (digest)"
)


def _to_5(connection: Connection, payloads: PayloadFiles) -> None:  # noqa: ARG001 - as every step
    """Find samples by the digest of stream and id instead of the two themselves."""
    for statement in (
        "DROP INDEX samples_buffers",
        "ALTER TABLE samples RENAME TO samples_4",
        _SAMPLES_5,
        "CREATE INDEX samples_buffers ON samples (stream, holdout, session, class_id, arrived_at)",
    ):
        connection.execute(text(statement))
    page = text("SELECT seq, stream, id FROM samples_4 WHERE seq > :after ORDER BY seq LIMIT :rows")
    move = text(
        f"INSERT INTO samples ({_SAMPLE_COLUMNS}, file, start, length, digest) "  # noqa: S608 - as above
        f"SELECT {_SAMPLE_COLUMNS}, file, start, length, :digest FROM samples_4 WHERE seq = :seq"
    )
    after = -1
    while rows := connection.execute(page, {"after": after, "rows": _ROWS_AT_ONCE}).all():
        connection.execute(
            move,
            [
                {"seq": r.seq, "digest": hashlib.sha256(f"{r.stream}\0{r.id}".encode()).digest()[:16]}
                for r in rows
            ],
        )
        after = rows[-1].seq
    connection.execute(text("DROP TABLE samples_4"))


# By the version that a step starts from: the version that it makes, and the step.
MIGRATIONS: Mapping[int, tuple[int, Step]] = {2: (4, _to_4), 4: (5, _to_5)}


def migrate(connection: Connection, payloads: PayloadFiles) -> None:
    """Take every step there is from the version found; part of one writing transaction.

    A version that no step leads from stays as it is: whoever opens the state refuses it.
    """
    first: int = connection.scalars(select(owner.c.schema_version)).one()
    found = first
    while found in MIGRATIONS:
        found, step = MIGRATIONS[found]
        step(connection, payloads)
        connection.execute(update(owner).values(schema_version=found))
    if found != first:
        log.info("state.migrated", from_version=first, to_version=found)
