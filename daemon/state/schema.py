"""The tables of the state database; every one is keyed by the stream's name."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 5

metadata = MetaData()

# SQLite numbers rows by itself only where the type is exactly INTEGER.
_RowNumber = BigInteger().with_variant(Integer, "sqlite")

# One row: who may write. The epoch grows with every owner; an owner with an older one is fenced.
owner = Table(
    "owner",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("schema_version", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
)

offsets = Table(
    "offsets",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("next_offset", BigInteger, nullable=False),
)

totals = Table(
    "totals",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("stored", BigInteger, nullable=False),
    Column("duplicate", BigInteger, nullable=False),
    Column("dead_lettered", BigInteger, nullable=False),
)

classes = Table(
    "classes",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("label", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("first_seen", Float, nullable=False),
    UniqueConstraint("stream", "label"),
)

# Payloads of deleted samples that are still to be overwritten: they must be gone also if a kill comes first.
erasures = Table(
    "erasures",
    metadata,
    Column("file", Integer, primary_key=True, autoincrement=False),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("length", Integer, primary_key=True, autoincrement=False),
)

# `session` is the session that trains or has trained on a sample, null while there is none. `file`, `start`
# and `length` say where the payload lies (`daemon.state.payload_files`), `digest` is what a sample is found
# by (`daemon.state.digest`).
samples = Table(
    "samples",
    metadata,
    Column("seq", _RowNumber, primary_key=True, autoincrement=True),
    Column("stream", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("class_id", Integer, nullable=False),
    Column("holdout", Boolean, nullable=False),
    Column("session", Integer, nullable=True),
    Column("arrived_at", Float, nullable=False),
    Column("timestamp", Float, nullable=False),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("position", Integer, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("file", Integer, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("length", Integer, nullable=False),
    UniqueConstraint("digest"),
    ForeignKeyConstraint(["stream", "class_id"], ["classes.stream", "classes.id"]),
)
# Buffers are counted every second: this covers the count, so that no row is read.
Index(
    "samples_buffers",
    samples.c.stream,
    samples.c.holdout,
    samples.c.session,
    samples.c.class_id,
    samples.c.arrived_at,
)

decisions = Table(
    "decisions",
    metadata,
    Column("seq", _RowNumber, primary_key=True, autoincrement=True),
    Column("stream", Text, nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("kind", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("fired", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("facts", JSON, nullable=False),
)

# `forgets` is the class that the session takes out, null for a session that learns.
sessions = Table(
    "sessions",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("new_classes", JSON, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float, nullable=True),
    Column("parent", Text, nullable=True),
    Column("generation", Text, nullable=True),
    Column("seed", BigInteger, nullable=False),
    Column("method", Text, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("detail", JSON, nullable=False),
    Column("forgets", Integer, nullable=True),
)

generations = Table(
    "generations",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", Text, nullable=False),
    Column("session", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("accuracy", Float, nullable=True),
    UniqueConstraint("stream", "digest"),
)

live = Table(
    "live",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("number", Integer, nullable=False),
    ForeignKeyConstraint(["stream", "number"], ["generations.stream", "generations.number"]),
)

# Events written with the change they tell of, until the log has confirmed them.
outbox = Table(
    "outbox",
    metadata,
    Column("seq", _RowNumber, primary_key=True, autoincrement=True),
    Column("stream", Text, nullable=False, index=True),
    Column("id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("at", Float, nullable=False),
    Column("data", JSON, nullable=False),
)

# Ids of the commands that were taken from the control topic, kept so that none is taken twice. `dated` is
# what a command's age counts from, null for one that must be remembered for ever.
commands = Table(
    "commands",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("taken_at", Float, nullable=False),
    Column("dated", Float, nullable=True),
)
# The old ones are looked for every few minutes.
Index("commands_dated", commands.c.dated)
