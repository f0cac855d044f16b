"""The state on a SQL database: who may write, and one transaction per call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, insert, inspect, select, update

from daemon.clock import Clock
from daemon.errors import FencedOwner, StateError, StateVersionMismatch
from daemon.events.base import NewEvent, PendingEvent
from daemon.sources.base import Place
from daemon.sqlite import sqlite_engine, writing
from daemon.state import history, ingest, library, outbox
from daemon.state.base import (
    ClassBuffer,
    ClassRecord,
    DeadSample,
    Decision,
    GenerationRecord,
    NewSample,
    SessionOutcome,
    SessionRecord,
    StoredSample,
    StoreResult,
    StreamCounts,
)
from daemon.state.lock import DirectoryLock
from daemon.state.schema import SCHEMA_VERSION, metadata, owner

# Payloads are read in pieces so that a session over many large images needs little memory.
_PAYLOADS_AT_ONCE = 128


class SqlState:
    """The `State` of one state directory; any thread may call any method.

    Every writing method is one transaction that first checks the owner's epoch. Opened read-only it
    takes no lock and no epoch, and only the reading methods work.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        lock: DirectoryLock | None,
        epoch: int | None,
        holdout_fraction: Mapping[str, float],
        clock: Clock,
    ) -> None:
        self._reader = engine
        self._writer = writing(engine)
        self._lock = lock
        self._epoch = epoch
        self._holdout_fraction = dict(holdout_fraction)
        self._clock = clock
        # Threads queue here in order instead of polling the database's own lock.
        self._one_writer = threading.Lock()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        holdout_fraction: Mapping[str, float],
        clock: Clock,
        read_only: bool = False,
    ) -> SqlState:
        """Open `directory/state.db`, creating it unless `read_only`.

        Args:
            directory: the state directory.
            holdout_fraction: share of samples held out, by stream; used when samples are stored.
            clock: gives the times of arrival.
            read_only: for tools and the trainer process beside a daemon that writes.

        Raises:
            StateLocked: another process owns the directory.
            StateVersionMismatch: another release wrote the database.
            StateError: read-only, and there is no database.
        """
        path = directory / "state.db"
        if read_only:
            if not path.exists():
                raise StateError(f"{path}: no state here; start a daemon with this state_directory first")
            engine = sqlite_engine(path, read_only=True)
            _check_version(engine)
            return cls(engine, lock=None, epoch=None, holdout_fraction=holdout_fraction, clock=clock)
        directory.mkdir(parents=True, exist_ok=True)
        lock = DirectoryLock(directory)
        try:
            engine = sqlite_engine(path)
            epoch = _take_over(engine)
        except BaseException:
            lock.release()
            raise
        return cls(engine, lock=lock, epoch=epoch, holdout_fraction=holdout_fraction, clock=clock)

    def close(self) -> None:
        """Release the lock and every connection; idempotent."""
        self._reader.dispose()
        if self._lock is not None:
            self._lock.release()

    # -- intake

    def next_offsets(self, stream: str) -> Mapping[Place, int]:
        """Return the next offset wanted per partition."""
        with self._reader.begin() as connection:
            return ingest.next_offsets(connection, stream)

    def store(
        self,
        stream: str,
        samples: Sequence[NewSample],
        dead: Sequence[DeadSample],
        next_offsets: Mapping[Place, int],
    ) -> StoreResult:
        """Store samples, count dead letters and move the offsets, in one transaction.

        Raises:
            ValueError: the stream has no holdout fraction.
            FencedOwner: another daemon has taken over; nothing was written.
        """
        if stream not in self._holdout_fraction:
            raise ValueError(f"stream {stream!r} is not configured: open the state with its holdout fraction")
        with self._write() as connection:
            return ingest.store(
                connection,
                stream,
                samples,
                len(dead),
                next_offsets,
                fraction=self._holdout_fraction[stream],
                now=self._clock.now(),
            )

    def counts(self, stream: str) -> StreamCounts:
        """Return the durable totals."""
        with self._reader.begin() as connection:
            return ingest.counts(connection, stream)

    # -- classes and samples

    def classes(self, stream: str) -> Sequence[ClassRecord]:
        """List the class registry by id."""
        with self._reader.begin() as connection:
            return library.class_records(connection, stream)

    def buffers(self, stream: str) -> Sequence[ClassBuffer]:
        """List what is not learnt yet, by class id; classes without such samples are left out."""
        with self._reader.begin() as connection:
            return library.buffers(connection, stream)

    def session_sample_ids(self, stream: str, session: int) -> Sequence[str]:
        """List the training samples assigned to a session, in arrival order."""
        with self._reader.begin() as connection:
            return library.session_sample_ids(connection, stream, session)

    def holdout_sample_ids(
        self, stream: str, class_ids: Sequence[int], limit_per_class: int
    ) -> Sequence[str]:
        """List holdout samples class by class, the earliest ones of each first."""
        with self._reader.begin() as connection:
            return library.holdout_sample_ids(connection, stream, class_ids, limit_per_class)

    def sample_labels(self, stream: str, ids: Sequence[str]) -> Sequence[int]:
        """Return the class id of each sample.

        Raises:
            ValueError: the stream has no such sample.
        """
        with self._reader.begin() as connection:
            return library.sample_labels(connection, stream, ids)

    def payloads(self, stream: str, ids: Sequence[str]) -> Iterator[StoredSample]:
        """Yield samples with their payloads, in the order asked for.

        Raises:
            ValueError: the stream has no such sample.
        """
        for piece in ingest.chunks(ids, _PAYLOADS_AT_ONCE):
            with self._reader.begin() as connection:
                found = library.stored_samples(connection, stream, piece)
            yield from found

    # -- decisions and sessions

    def record_decision(self, stream: str, decision: Decision) -> None:
        """Append to the decision log."""
        with self._write() as connection:
            history.add_decision(connection, stream, decision)

    def decisions(self, stream: str, limit: int) -> Sequence[Decision]:
        """List the latest decisions, newest first."""
        with self._reader.begin() as connection:
            return history.latest_decisions(connection, stream, limit)

    def begin_session(
        self,
        stream: str,
        *,
        new_classes: Sequence[int],
        method: str,
        settings: Mapping[str, Any],
        seed: int,
        decision: Decision,
        at: float,
        events: Callable[[SessionRecord], Sequence[NewEvent]] | None = None,
    ) -> SessionRecord:
        """Create a running session with every unlearnt training sample of its classes and of live ones.

        Raises:
            ValueError: a session of the stream runs already, or a new class is unknown or live.
        """
        with self._write() as connection:
            history.add_decision(connection, stream, decision)
            record = history.begin_session(
                connection,
                stream,
                new_classes=new_classes,
                method=method,
                settings=settings,
                seed=seed,
                at=at,
            )
            if events is not None:
                outbox.add_events(connection, stream, events(record))
            return record

    def restart_session(self, stream: str, session: int) -> SessionRecord:
        """Count one more attempt of a running session.

        Raises:
            ValueError: the session does not run.
        """
        with self._write() as connection:
            return history.restart_session(connection, stream, session)

    def end_session(
        self,
        stream: str,
        session: int,
        *,
        outcome: SessionOutcome,
        at: float,
        detail: Mapping[str, Any],
        generation: str | None = None,
        accuracy: float | None = None,
        decision: Decision | None = None,
        events: Sequence[NewEvent] = (),
    ) -> SessionRecord:
        """End a session: promote its classes and generation, or make its samples unlearnt again.

        Raises:
            ValueError: the session does not run, or a promotion names no generation.
        """
        with self._write() as connection:
            if decision is not None:
                history.add_decision(connection, stream, decision)
            outbox.add_events(connection, stream, events)
            return history.end_session(
                connection,
                stream,
                session,
                outcome=outcome,
                at=at,
                detail=detail,
                generation=generation,
                accuracy=accuracy,
            )

    def sessions(self, stream: str) -> Sequence[SessionRecord]:
        """List the sessions by id."""
        with self._reader.begin() as connection:
            return history.session_records(connection, stream)

    # -- generations

    def generations(self, stream: str) -> Sequence[GenerationRecord]:
        """List the stream's generations by number."""
        with self._reader.begin() as connection:
            return history.generation_records(connection, stream)

    def live(self, stream: str) -> GenerationRecord | None:
        """Return the generation that answers, None before the first promotion."""
        with self._reader.begin() as connection:
            return history.live_generation(connection, stream)

    def set_live(
        self, stream: str, digest: str, decision: Decision, events: Sequence[NewEvent] = ()
    ) -> GenerationRecord:
        """Move the live pointer to a generation the stream already has.

        Raises:
            ValueError: the stream has no such generation.
        """
        with self._write() as connection:
            history.add_decision(connection, stream, decision)
            outbox.add_events(connection, stream, events)
            return history.set_live(connection, stream, digest)

    # -- events and commands

    def pending_events(self, stream: str, limit: int) -> Sequence[PendingEvent]:
        """List the outbox, the events that wait longest first."""
        with self._reader.begin() as connection:
            return outbox.pending_events(connection, stream, limit)

    def pending_event_count(self, stream: str) -> int:
        """Count the outbox."""
        with self._reader.begin() as connection:
            return outbox.pending_event_count(connection, stream)

    def events_published(self, stream: str, seqs: Sequence[int]) -> None:
        """Take events out of the outbox."""
        with self._write() as connection:
            outbox.remove_events(connection, stream, seqs)

    def move_offset(self, stream: str, place: Place, next_offset: int) -> None:
        """Set the next offset wanted of a partition of commands or requests."""
        with self._write() as connection:
            ingest.move_offset(connection, stream, place, next_offset)

    def take_command(self, stream: str, place: Place, next_offset: int, command_id: str) -> bool:
        """Move the control topic's offset and note the command; return whether its id is new."""
        with self._write() as connection:
            ingest.move_offset(connection, stream, place, next_offset)
            return outbox.take_command(connection, stream, command_id, self._clock.now())

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


def _check_version(engine: Engine) -> None:
    with engine.begin() as connection:
        found = (
            connection.scalar(select(owner.c.schema_version))
            if inspect(connection).has_table(owner.name)
            else None
        )
    if found != SCHEMA_VERSION:
        raise StateVersionMismatch(
            f"{engine.url.database}: schema version {found}, this release needs {SCHEMA_VERSION}: "
            "use the release that wrote it, or another state_directory"
        )


def _take_over(engine: Engine) -> int:
    """Create the tables if there are none, and make this process the owner of the next epoch."""
    with writing(engine).begin() as connection:
        new = not inspect(connection).has_table(owner.name)
        if new:
            metadata.create_all(connection)
            connection.execute(insert(owner).values(id=1, schema_version=SCHEMA_VERSION, epoch=0))
    if not new:
        _check_version(engine)
    with writing(engine).begin() as connection:
        epoch = connection.scalar(select(owner.c.epoch).with_for_update())
        assert isinstance(epoch, int)
        connection.execute(update(owner).values(epoch=epoch + 1))
        return epoch + 1
