"""The state on a SQL database: who may write, and one transaction per call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert, inspect, select, update

from daemon.clock import Clock
from daemon.errors import StateError, StateVersionMismatch
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
from daemon.state.migrations import MIGRATIONS, migrate
from daemon.state.payload_files import PayloadFiles
from daemon.state.schema import SCHEMA_VERSION, metadata, owner
from daemon.state.sql_forgetting import SqlForgetting

# Payloads are read in pieces so that a session over many large images needs little memory.
_PAYLOADS_AT_ONCE = 128


class SqlState(SqlForgetting):
    """The `State` of one state directory; any thread may call any method.

    Every writing method is one transaction that first checks the owner's epoch. Opened read-only it
    takes no lock and no epoch, and only the reading methods work.
    """

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
        payloads = PayloadFiles(directory / "payloads")
        if read_only:
            if not path.exists():
                raise StateError(f"{path}: no state here; start a daemon with this state_directory first")
            engine = sqlite_engine(path, read_only=True)
            _check_version(engine)
            return cls(
                engine,
                lock=None,
                epoch=None,
                holdout_fraction=holdout_fraction,
                clock=clock,
                payloads=payloads,
            )
        directory.mkdir(parents=True, exist_ok=True)
        lock = DirectoryLock(directory)
        try:
            engine = sqlite_engine(path)
            epoch = _take_over(engine, payloads)
        except BaseException:
            lock.release()
            raise
        state = cls(
            engine,
            lock=lock,
            epoch=epoch,
            holdout_fraction=holdout_fraction,
            clock=clock,
            payloads=payloads,
        )
        state.finish_erasures()
        return state

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
            LabelForgotten: a label is of a class that takes no samples; nothing was written.
            FencedOwner: another daemon has taken over; nothing was written.
        """
        if stream not in self._holdout_fraction:
            raise ValueError(f"stream {stream!r} is not configured: open the state with its holdout fraction")
        with self._write() as connection:
            return ingest.store(
                connection,
                self._payloads,
                stream,
                samples,
                len(dead),
                next_offsets,
                fraction=self._holdout_fraction[stream],
                now=self._clock.now(),
            )

    def withdraw(self, stream: str, ids: Sequence[str]) -> None:
        """Take samples out of the store and count them as dead letters instead; unknown ids are left out.

        Raises:
            FencedOwner: another daemon has taken over; nothing was written.
        """
        with self._write() as connection:
            ingest.withdraw(connection, stream, ids)

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
        """List the training samples assigned to a session, by id: the same whatever order they came in."""
        with self._reader.begin() as connection:
            return library.session_sample_ids(connection, stream, session)

    def holdout_sample_ids(
        self, stream: str, class_ids: Sequence[int], limit_per_class: int
    ) -> Sequence[str]:
        """List the earliest holdout samples of each class, class by class and then by id."""
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
                found = library.stored_samples(connection, self._payloads, stream, piece)
            yield from found

    # -- decisions and sessions

    def record_decision(self, stream: str, decision: Decision, events: Sequence[NewEvent] = ()) -> None:
        """Append to the decision log and put the events into the outbox."""
        with self._write() as connection:
            history.add_decision(connection, stream, decision)
            outbox.add_events(connection, stream, events)

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

    def take_command(
        self, stream: str, place: Place, next_offset: int, command_id: str, dated: float | None = None
    ) -> bool:
        """Move the control topic's offset and note the command; return whether its id is new."""
        with self._write() as connection:
            ingest.move_offset(connection, stream, place, next_offset)
            return outbox.take_command(connection, stream, command_id, self._clock.now(), dated)

    def forget_commands(self, before: float, limit: int) -> int:
        """Forget the oldest ids of commands dated before a time; return how many, at most `limit`."""
        with self._write() as connection:
            return outbox.forget_commands(connection, before, limit)

    def command_count(self) -> int:
        """Count the ids of commands that are remembered."""
        with self._reader.begin() as connection:
            return outbox.command_count(connection)


def _check_version(engine: Engine) -> None:
    with engine.begin() as connection:
        found = (
            connection.scalar(select(owner.c.schema_version))
            if inspect(connection).has_table(owner.name)
            else None
        )
    if found != SCHEMA_VERSION:
        remedy = (
            "start this release's daemon on it once, which brings it up to date"
            if found in MIGRATIONS
            else "use the release that wrote it, or another state_directory"
        )
        raise StateVersionMismatch(
            f"{engine.url.database}: schema version {found}, this release needs {SCHEMA_VERSION}: {remedy}"
        )


def _take_over(engine: Engine, payloads: PayloadFiles) -> int:
    """Create the tables if there are none, and make this process the owner of the next epoch."""
    with writing(engine).begin() as connection:
        new = not inspect(connection).has_table(owner.name)
        if new:
            metadata.create_all(connection)
            connection.execute(insert(owner).values(id=1, schema_version=SCHEMA_VERSION, epoch=0))
        else:
            migrate(connection, payloads)
    if not new:
        _check_version(engine)
    with writing(engine).begin() as connection:
        epoch = connection.scalar(select(owner.c.epoch).with_for_update())
        assert isinstance(epoch, int)
        connection.execute(update(owner).values(epoch=epoch + 1))
        return epoch + 1
