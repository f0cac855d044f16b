"""The tables of the embedded topic log."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

LOG_VERSION = 1

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

# Apart from the messages, so that a key is remembered after its message has been trimmed.
idempotency = Table(
    "idempotency",
    metadata,
    Column("topic_id", Integer, ForeignKey("topics.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
)
