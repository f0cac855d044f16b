"""Databases of earlier releases: opened, brought up to date, and nothing of them lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect

from daemon.clock import SystemClock
from daemon.errors import StateVersionMismatch
from daemon.sources.base import Message, Place
from daemon.sources.log import EmbeddedLog
from daemon.sqlite import sqlite_engine
from daemon.state import SqlState
from daemon.state.base import SessionOutcome
from daemon.state.schema import SCHEMA_VERSION
from tests.support.manual_clock import ManualClock

DATABASES = Path(__file__).parents[1] / "support" / "databases"


def earlier(directory: Path, name: str, tables: str, rows: Mapping[str, list[tuple[Any, ...]]]) -> None:
    """Make a database with an earlier release's tables."""
    directory.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(directory / name)
    connection.executescript((DATABASES / tables).read_text())
    for table, values in rows.items():
        for row in values:
            connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    connection.commit()
    connection.close()


def state_of_version_2(directory: Path, samples: int = 300) -> None:
    """Make a state with two classes, a session that has learnt one of them, and a command taken."""
    earlier(
        directory,
        "state.db",
        "state_2.sql",
        {
            "owner": [(1, 2, 7)],
            "offsets": [("s", "labelled", 0, samples)],
            "totals": [("s", samples, 0, 0)],
            "classes": [("s", 0, "cat", "live", 1.0), ("s", 1, "dog", "pending", 2.0)],
            "samples": [
                (
                    *(
                        n + 1,
                        "s",
                        f"id-{n}",
                        n % 2,
                        n % 5 == 0,
                        0 if n % 2 == 0 and n % 5 else None,
                        3.0,
                        4.0,
                    ),
                    *("labelled", 0, n, 0, "image/png", b"payload %d" % n),
                )
                for n in range(samples)
            ],
            "sessions": [
                ("s", 0, "[0]", "promoted", 1, 5.0, 6.0, None, "digest", 1, "ncm", "{}", "{}"),
            ],
            "generations": [("s", 1, "digest", 0, 6.0, 0.5)],
            "live": [("s", 1)],
            "commands": [("s", "old", 5.5)],
        },
    )


def opened(directory: Path, **options: Any) -> SqlState:
    """Open a state."""
    return SqlState.open(directory, holdout_fraction={"s": 0.2}, clock=ManualClock(), **options)


def tables(path: Path) -> dict[str, Any]:
    """Describe a database: columns, keys and indexes of every table."""
    engine = sqlite_engine(path)
    found = inspect(engine)
    described = {}
    for table in found.get_table_names():
        columns = [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(table)]
        described[table] = (
            columns,
            found.get_pk_constraint(table)["constrained_columns"],
            sorted((i["name"] or "", tuple(i["column_names"])) for i in found.get_indexes(table)),
            sorted(tuple(u["column_names"]) for u in found.get_unique_constraints(table)),
            sorted(tuple(k["constrained_columns"]) for k in found.get_foreign_keys(table)),
        )
    engine.dispose()
    return described


def test_a_state_of_the_release_before_is_brought_up_to_date(tmp_path: Path) -> None:
    """Every sample with its payload, the offsets, the live generation and the commands taken are there."""
    state_of_version_2(tmp_path)
    state = opened(tmp_path)
    assert state.counts("s").stored == 300
    assert state.next_offsets("s") == {Place("labelled", 0): 300}
    ids = [f"id-{n}" for n in range(300)]
    assert [s.payload for s in state.payloads("s", ids)] == [b"payload %d" % n for n in range(300)]
    assert state.session_sample_ids("s", 0) == sorted(f"id-{n}" for n in range(300) if n % 2 == 0 and n % 5)
    (session,) = state.sessions("s")
    assert (session.outcome, session.forgets) == (SessionOutcome.PROMOTED, None)
    live = state.live("s")
    assert live is not None
    assert live.digest == "digest"
    assert not state.take_command("s", Place("control", 0), 1, "old")
    assert state.forget_commands(before=1e12, limit=10) == 0, "its age is not known"
    state.close()


def test_a_migrated_state_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    """Columns, keys and indexes are the same, so that nothing can tell them apart."""
    state_of_version_2(tmp_path / "old", samples=3)
    opened(tmp_path / "old").close()
    opened(tmp_path / "new").close()
    assert tables(tmp_path / "old" / "state.db") == tables(tmp_path / "new" / "state.db")
    opened(tmp_path / "old").close()


def test_a_reader_does_not_migrate(tmp_path: Path) -> None:
    """The daemon's own tools never write; the message says what brings the state up to date."""
    state_of_version_2(tmp_path, samples=3)
    with pytest.raises(StateVersionMismatch, match="start this release's daemon"):
        opened(tmp_path, read_only=True)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full in the middle: the state is of its old version, whole, and the next start succeeds."""
    state_of_version_2(tmp_path)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("daemon.state.payload_files.os.fdatasync", full)
        with pytest.raises(OSError, match="no space"):
            opened(tmp_path)
    before = sqlite3.connect(tmp_path / "state.db")
    assert before.execute("SELECT schema_version FROM owner").fetchone() == (2,)
    assert before.execute("SELECT count(payload) FROM samples").fetchone() == (300,)
    before.close()
    state = opened(tmp_path)
    assert [s.payload for s in state.payloads("s", ["id-299"])] == [b"payload 299"]
    state.close()


def test_a_version_of_the_future_is_refused(tmp_path: Path) -> None:
    """A state that a later release wrote is left alone."""
    opened(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "state.db")
    connection.execute("UPDATE owner SET schema_version = ?", (SCHEMA_VERSION + 1,))
    connection.commit()
    connection.close()
    with pytest.raises(StateVersionMismatch, match="use the release that wrote it"):
        opened(tmp_path)


def test_a_topic_log_of_the_release_before_keeps_its_keys(tmp_path: Path) -> None:
    """Messages and keys are there, and a key of unknown age counts from now."""
    earlier(
        tmp_path,
        "topics.db",
        "topics_1.sql",
        {
            "log_version": [(1,)],
            "topics": [(1, "t")],
            "partitions": [(1, 0, 0, 1)],
            "messages": [(1, 0, 0, 5.0, "{}", None, b"first")],
            "idempotency": [(1, "key", 0, 0)],
        },
    )
    clock = ManualClock()
    log = EmbeddedLog(tmp_path / "topics.db", clock)
    assert log.append("t", [Message(b"again", idempotency_key="key")]) == [0]
    assert [record.value for record in log.read("t", 0, 0, 10)] == [b"first"]
    assert log.forget_keys("t", clock.now(), 10) == 0
    assert log.forget_keys("t", clock.now() + 1.0, 10) == 1
    log.close()
    EmbeddedLog(tmp_path / "new.db", SystemClock()).close()
    assert tables(tmp_path / "topics.db") == tables(tmp_path / "new.db")
