"""SQLite engines for `state.db` and `topics.db`, with the pragmas that durability rests on."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

# A writer waits this long for another process's transaction before it gives up; ours take milliseconds.
BUSY_SECONDS = 30.0
# Pages beyond these come from the operating system's cache, which costs next to nothing. With 32 MiB the
# daemon grew by 7 % from the second to the last tenth of a million records: the cache was still filling.
_CACHE_KIB = 8 * 1024
# A checkpoint writes each changed page once, and ids are random: 2,000 samples change 1,000 pages or more, so
# that SQLite's own 1,000 pages make one after each transaction. These are 64 MiB of write-ahead log.
_CHECKPOINT_PAGES = 16_384


def sqlite_engine(path: Path, *, read_only: bool = False) -> Engine:
    """Return an engine on one SQLite file in WAL mode with full synchronisation.

    A transaction begins as a snapshot for reading; `writing(engine)` gives the same pool with
    transactions that take the write lock at once.

    Args:
        path: the database file; created unless `read_only`.
        read_only: refuse every write, and do not create the file.
    """
    mode = "rw" if read_only else "rwc"
    url = URL.create(
        "sqlite+pysqlite", database=f"file:{path.absolute()}", query={"uri": "true", "mode": mode}
    )
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        pool_size=8,
        max_overflow=32,
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver's own transaction handling begins none for a SELECT; `_begin` does it for all.
        connection.isolation_level = None
        cursor = connection.cursor()
        if read_only:
            # Not `mode=ro`: after a kill the write-ahead log is recovered by whoever opens first.
            cursor.execute("PRAGMA query_only=ON")
        else:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            cursor.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


def max_parameters(connection: Connection) -> int:
    """Return how many parameters one statement of SQLite may have: 999 before release 3.32."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection), "a connection to SQLite"
    return driver.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)


def writing(engine: Engine) -> Engine:
    """Return the engine with transactions that hold the write lock from their first instruction.

    A transaction that reads first and writes later fails on SQLite when another one wrote in
    between, and no busy timeout helps. Other databases ignore the option.
    """
    return engine.execution_options(begin="BEGIN IMMEDIATE")
