"""Reading and writing transactions of one owner of the state."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, select

from daemon.clock import Clock
from daemon.errors import FencedOwner, StateError
from daemon.sqlite import writing
from daemon.state.lock import DirectoryLock
from daemon.state.payload_files import PayloadFiles
from daemon.state.schema import owner


class Transactions:
    """What every group of the state's methods works with; any thread may call any method.

    Args:
        engine: on the database.
        lock: of the state directory, None where nothing is written.
        epoch: the owner's, None where nothing is written.
        holdout_fraction: share of samples held out, by stream.
        clock: gives the times of arrival.
        payloads: where the samples' payloads lie.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        lock: DirectoryLock | None,
        epoch: int | None,
        holdout_fraction: Mapping[str, float],
        clock: Clock,
        payloads: PayloadFiles,
    ) -> None:
        self._reader = engine
        self._writer = writing(engine)
        self._lock = lock
        self._epoch = epoch
        self._holdout_fraction = dict(holdout_fraction)
        self._clock = clock
        self._payloads = payloads
        # Threads queue here in order instead of polling the database's own lock.
        self._one_writer = threading.Lock()

    def close(self) -> None:
        """Release the lock and every connection; idempotent."""
        self._reader.dispose()
        self._payloads.close()
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        if self._epoch is None:
            raise StateError("the state is open read-only: only the daemon that owns it may write")
        with self._one_writer, self._writer.begin() as connection:
            # The row lock (SQLite: the write lock) keeps a new owner out until this transaction ends.
            epoch = connection.scalar(select(owner.c.epoch).with_for_update())
            if epoch != self._epoch:
                raise FencedOwner(
                    f"this daemon owned the state in epoch {self._epoch}, it is now {epoch}: "
                    "another daemon has taken over; stop this one"
                )
            yield connection
