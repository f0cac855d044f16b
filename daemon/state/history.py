"""Decisions, sessions, generations and the live pointer; each function is part of one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, false, func, insert, select, update

from daemon.state.base import (
    ClassState,
    Decision,
    GenerationRecord,
    SessionOutcome,
    SessionRecord,
)
from daemon.state.ingest import chunks
from daemon.state.schema import classes, decisions, generations, live, samples, sessions


def add_decision(connection: Connection, stream: str, decision: Decision) -> None:
    """Append to the decision log."""
    connection.execute(
        insert(decisions).values(
            stream=stream,
            at=decision.at,
            kind=decision.kind,
            policy=decision.policy,
            fired=decision.fired,
            reason=decision.reason,
            facts=dict(decision.facts),
        )
    )


def latest_decisions(connection: Connection, stream: str, limit: int) -> list[Decision]:
    """Read the latest decisions, newest first."""
    rows = connection.execute(
        select(decisions).where(decisions.c.stream == stream).order_by(decisions.c.seq.desc()).limit(limit)
    )
    return [
        Decision(at=r.at, kind=r.kind, policy=r.policy, fired=r.fired, reason=r.reason, facts=r.facts)
        for r in rows
    ]


def begin_session(
    connection: Connection,
    stream: str,
    *,
    new_classes: Sequence[int],
    method: str,
    settings: Mapping[str, Any],
    seed: int,
    at: float,
) -> SessionRecord:
    """Create a running session and give it the unlearnt samples of its classes and of live ones.

    Raises:
        ValueError: a session of the stream runs already, or a new class is unknown or live.
    """
    states = {
        row.id: ClassState(row.state)
        for row in connection.execute(select(classes.c.id, classes.c.state).where(classes.c.stream == stream))
    }
    wrong = [c for c in new_classes if states.get(c) is not ClassState.PENDING]
    if wrong:
        raise ValueError(f"stream {stream!r}: new_classes {wrong} are not pending classes of its registry")
    record = add_session(
        connection,
        stream,
        new_classes=sorted(new_classes),
        method=method,
        settings=settings,
        seed=seed,
        at=at,
    )
    taken = [*record.new_classes, *(c for c, state in states.items() if state is ClassState.LIVE)]
    for piece in chunks(taken):
        connection.execute(
            update(samples)
            .where(
                samples.c.stream == stream,
                samples.c.session.is_(None),
                samples.c.holdout == false(),
                samples.c.class_id.in_(piece),
            )
            .values(session=record.id)
        )
    return record


def add_session(
    connection: Connection,
    stream: str,
    *,
    new_classes: Sequence[int],
    method: str,
    settings: Mapping[str, Any],
    seed: int,
    at: float,
    forgets: int | None = None,
) -> SessionRecord:
    """Create a running session that builds on the live generation.

    Raises:
        ValueError: a session of the stream runs already.
    """
    running = connection.scalar(
        select(sessions.c.id).where(
            sessions.c.stream == stream, sessions.c.outcome == SessionOutcome.RUNNING.value
        )
    )
    if running is not None:
        raise ValueError(f"stream {stream!r}: session {running} is still running; end it first")
    last = connection.scalar(select(func.max(sessions.c.id)).where(sessions.c.stream == stream))
    parent = live_generation(connection, stream)
    record = SessionRecord(
        id=0 if last is None else last + 1,
        new_classes=tuple(new_classes),
        outcome=SessionOutcome.RUNNING,
        attempt=1,
        started_at=at,
        ended_at=None,
        parent=None if parent is None else parent.digest,
        generation=None,
        seed=seed,
        method=method,
        settings=dict(settings),
        forgets=forgets,
    )
    connection.execute(
        insert(sessions).values(
            stream=stream,
            id=record.id,
            new_classes=list(record.new_classes),
            outcome=record.outcome.value,
            attempt=record.attempt,
            started_at=at,
            parent=record.parent,
            seed=seed,
            method=method,
            settings=record.settings,
            detail={},
            forgets=forgets,
        )
    )
    return record


def restart_session(connection: Connection, stream: str, session: int) -> SessionRecord:
    """Count one more attempt of a running session."""
    running_session(connection, stream, session)
    connection.execute(
        update(sessions)
        .where(sessions.c.stream == stream, sessions.c.id == session)
        .values(attempt=sessions.c.attempt + 1)
    )
    return _session(connection, stream, session)


def end_session(
    connection: Connection,
    stream: str,
    session: int,
    *,
    outcome: SessionOutcome,
    at: float,
    detail: Mapping[str, Any],
    generation: str | None,
    accuracy: float | None,
) -> SessionRecord:
    """Give a running session its outcome, and what follows from it to classes, samples and live pointer.

    Raises:
        ValueError: the session does not run, the outcome is none, or a promotion names no generation.
    """
    record = running_session(connection, stream, session)
    if outcome is SessionOutcome.RUNNING:
        raise ValueError("outcome: running is not one; use promoted, rejected or failed")
    if outcome is SessionOutcome.PROMOTED:
        if generation is None:
            raise ValueError(f"session {session}: a promotion needs the digest of its generation")
        make_live(connection, stream, generation, session, at, accuracy)
        for piece in chunks(record.new_classes):
            connection.execute(
                update(classes)
                # One that an operator wants forgotten meanwhile is to be taken out again.
                .where(
                    classes.c.stream == stream,
                    classes.c.id.in_(piece),
                    classes.c.state == ClassState.PENDING.value,
                )
                .values(state=ClassState.LIVE.value)
            )
    else:
        connection.execute(
            update(samples)
            .where(samples.c.stream == stream, samples.c.session == session, samples.c.holdout == false())
            .values(session=None)
        )
    return close_session(connection, stream, session, outcome, at, detail, generation)


def make_live(
    connection: Connection, stream: str, digest: str, session: int, at: float, accuracy: float | None
) -> None:
    """Give a session's generation the next number and point to it."""
    _point(connection, stream, _add_generation(connection, stream, digest, session, at, accuracy))


def close_session(
    connection: Connection,
    stream: str,
    session: int,
    outcome: SessionOutcome,
    at: float,
    detail: Mapping[str, Any],
    generation: str | None,
) -> SessionRecord:
    """Write down how a session ended."""
    connection.execute(
        update(sessions)
        .where(sessions.c.stream == stream, sessions.c.id == session)
        .values(outcome=outcome.value, ended_at=at, detail=dict(detail), generation=generation)
    )
    return _session(connection, stream, session)


def session_records(connection: Connection, stream: str) -> list[SessionRecord]:
    """Read the sessions by id."""
    rows = connection.execute(select(sessions).where(sessions.c.stream == stream).order_by(sessions.c.id))
    return [_session_record(row) for row in rows]


def generation_records(connection: Connection, stream: str) -> list[GenerationRecord]:
    """Read the stream's generations by number."""
    rows = connection.execute(
        select(generations).where(generations.c.stream == stream).order_by(generations.c.number)
    )
    return [_generation_record(row) for row in rows]


def live_generation(connection: Connection, stream: str) -> GenerationRecord | None:
    """Read the generation that answers."""
    row = connection.execute(
        select(generations)
        .join(live, (live.c.stream == generations.c.stream) & (live.c.number == generations.c.number))
        .where(live.c.stream == stream)
    ).one_or_none()
    return None if row is None else _generation_record(row)


def set_live(connection: Connection, stream: str, digest: str) -> GenerationRecord:
    """Move the live pointer to a generation the stream has.

    Raises:
        ValueError: the stream has no such generation.
    """
    row = _generation_row(connection, stream, digest)
    if row is None:
        raise ValueError(f"stream {stream!r} has no generation {digest!r}: choose one it has promoted before")
    _point(connection, stream, row.number)
    return _generation_record(row)


def remove_generations(connection: Connection, stream: str, digests: Sequence[str]) -> None:
    """Take generations off the stream's list; the live pointer's foreign key keeps the live one."""
    for piece in chunks(digests):
        connection.execute(
            delete(generations).where(generations.c.stream == stream, generations.c.digest.in_(piece))
        )


def generation_digests(connection: Connection) -> frozenset[str]:
    """Read the digests of all streams' generations."""
    return frozenset(connection.scalars(select(generations.c.digest)))


def _session(connection: Connection, stream: str, session: int) -> SessionRecord:
    row = connection.execute(
        select(sessions).where(sessions.c.stream == stream, sessions.c.id == session)
    ).one_or_none()
    if row is None:
        raise ValueError(f"stream {stream!r} has no session {session}")
    return _session_record(row)


def running_session(connection: Connection, stream: str, session: int) -> SessionRecord:
    """Read a session that runs.

    Raises:
        ValueError: it does not.
    """
    record = _session(connection, stream, session)
    if record.outcome is not SessionOutcome.RUNNING:
        raise ValueError(f"stream {stream!r}: session {session} has ended already ({record.outcome})")
    return record


def _add_generation(
    connection: Connection, stream: str, digest: str, session: int, at: float, accuracy: float | None
) -> int:
    # Equal content has an equal digest: a session that made what is there already adds no number.
    row = _generation_row(connection, stream, digest)
    if row is not None:
        return int(row.number)
    last = connection.scalar(select(func.max(generations.c.number)).where(generations.c.stream == stream))
    number = (last or 0) + 1
    connection.execute(
        insert(generations).values(
            stream=stream, number=number, digest=digest, session=session, created_at=at, accuracy=accuracy
        )
    )
    return number


def _generation_row(connection: Connection, stream: str, digest: str) -> Row[Any] | None:
    return connection.execute(
        select(generations).where(generations.c.stream == stream, generations.c.digest == digest)
    ).one_or_none()


def _point(connection: Connection, stream: str, number: int) -> None:
    updated = connection.execute(update(live).where(live.c.stream == stream).values(number=number))
    if updated.rowcount == 0:
        connection.execute(insert(live).values(stream=stream, number=number))


def _session_record(row: Row[Any]) -> SessionRecord:
    return SessionRecord(
        id=row.id,
        new_classes=tuple(row.new_classes),
        outcome=SessionOutcome(row.outcome),
        attempt=row.attempt,
        started_at=row.started_at,
        ended_at=row.ended_at,
        parent=row.parent,
        generation=row.generation,
        seed=row.seed,
        method=row.method,
        settings=row.settings,
        detail=row.detail,
        forgets=row.forgets,
    )


def _generation_record(row: Row[Any]) -> GenerationRecord:
    return GenerationRecord(
        number=row.number,
        digest=row.digest,
        session=row.session,
        created_at=row.created_at,
        accuracy=row.accuracy,
    )
