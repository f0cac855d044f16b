"""The tables of the embedded topic log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

LOG_VERSION = 2

metadata = MetaData()

# One row, so that a later release knows what it has opened.
version = Table("log_version", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

topics = Table(
    "topics",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
)

# `start_offset` is the first one kept, `end_offset` the next one to be given.
partitions = Table(
    "partitions",
    metadata,
    Column("topic_id", Integer, ForeignKey("topics.id"), primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("start_offset", BigInteger, nullable=False),
    Column("end_offset", BigInteger, nullable=False),
)

messages = Table(
    "messages",
    metadata,
    Column("topic_id", Integer, primary_key=True, autoincrement=False),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    Column("timestamp", Float, nullable=False),
    Column("headers", Text, nullable=False),
    Column("key", LargeBinary, nullable=True),
    Column("value", LargeBinary, nullable=True),
    ForeignKeyConstraint(["topic_id", "partition"], ["partitions.topic_id", "partitions.partition"]),
)

# Apart from the messages, so that a key is remembered after its message has been trimmed. `noted_at` is in
# seconds since the epoch; the default is for a column that is added to a table with rows.
idempotency = Table(
    "idempotency",
    metadata,
    Column("topic_id", Integer, ForeignKey("topics.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("noted_at", Float, nullable=False, server_default="0"),
)
# The old ones are looked for every few minutes.
Index("idempotency_noted_at", idempotency.c.topic_id, idempotency.c.noted_at)

# Per version the statements that make the next one of it. A key of unknown age is as young as can be.
MIGRATIONS: Mapping[int, Sequence[str]] = {
    1: (
        "ALTER TABLE idempotency ADD COLUMN noted_at FLOAT DEFAULT '0' NOT NULL",
        "UPDATE idempotency SET noted_at = :now",
        "CREATE INDEX idempotency_noted_at ON idempotency (topic_id, noted_at)",
    ),
}
