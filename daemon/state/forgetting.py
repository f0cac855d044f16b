"""What happens to the tables when a class is forgotten; each function is part of one transaction.

The class's row stays, as the tombstone that later samples of its label are refused by. Deleted are its
samples, training and holdout, and the generations that hold it. The log that the samples came from is not
the daemon's to rewrite: its retention, or the dead letters', is what removes them there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, false, insert, select, update

from daemon.state.base import ClassState, SessionOutcome, SessionRecord
from daemon.state.history import (
    add_session,
    close_session,
    make_live,
    remove_generations,
    running_session,
)
from daemon.state.ingest import REFUSED
from daemon.state.payload_files import Span
from daemon.state.schema import classes, erasures, samples, sessions


def refused_labels(connection: Connection, stream: str) -> frozenset[str]:
    """Read the labels of the classes that take no samples."""
    rows = select(classes.c.label).where(classes.c.stream == stream, classes.c.state.in_(REFUSED))
    return frozenset(connection.scalars(rows))


def ask(connection: Connection, stream: str, class_id: int) -> None:
    """Note that a class is to be forgotten.

    Raises:
        ValueError: it is neither pending nor live.
    """
    _move(connection, stream, class_id, (ClassState.PENDING, ClassState.LIVE), ClassState.FORGETTING)


def remember(connection: Connection, stream: str, class_id: int) -> None:
    """Let a forgotten class take samples again.

    Raises:
        ValueError: it is not forgotten.
    """
    _move(connection, stream, class_id, (ClassState.FORGOTTEN,), ClassState.PENDING)


def learnt_sample_ids(connection: Connection, stream: str, class_id: int) -> list[str]:
    """Read the training samples of a class that promoted sessions have learnt, ordered by id."""
    promoted = select(sessions.c.id).where(
        sessions.c.stream == stream, sessions.c.outcome == SessionOutcome.PROMOTED.value
    )
    return list(
        connection.scalars(
            select(samples.c.id)
            .where(
                samples.c.stream == stream,
                samples.c.class_id == class_id,
                samples.c.holdout == false(),
                samples.c.session.in_(promoted),
            )
            .order_by(samples.c.id)
        )
    )


def begin(connection: Connection, stream: str, class_id: int, *, method: str, at: float) -> SessionRecord:
    """Create the session that takes a class out.

    Raises:
        ValueError: a session of the stream runs already, or nobody has asked to forget the class.
    """
    state = connection.scalar(
        select(classes.c.state).where(classes.c.stream == stream, classes.c.id == class_id)
    )
    if state != ClassState.FORGETTING.value:
        raise ValueError(f"stream {stream!r}: class {class_id} is {state}, not to be forgotten")
    return add_session(
        connection, stream, new_classes=(), method=method, settings={}, seed=0, at=at, forgets=class_id
    )


def end(
    connection: Connection,
    stream: str,
    session: int,
    *,
    outcome: SessionOutcome,
    at: float,
    detail: Mapping[str, Any],
    again: bool,
    generation: str | None,
    accuracy: float | None,
    removed: Sequence[str],
) -> SessionRecord:
    """Give the session its outcome, and what follows from it to class, samples and generations.

    Raises:
        ValueError: the session does not run or forgets no class, or a promotion names no generation.
    """
    record = running_session(connection, stream, session)
    if record.forgets is None:
        raise ValueError(f"session {session} forgets no class: end it as one that learns")
    if outcome is SessionOutcome.PROMOTED:
        if generation is None:
            raise ValueError(f"session {session}: a promotion needs the digest of its generation")
        make_live(connection, stream, generation, session, at, accuracy)
        remove_generations(connection, stream, [digest for digest in removed if digest != generation])
        erase(connection, stream, record.forgets)
    elif not again:
        _move(connection, stream, record.forgets, (ClassState.FORGETTING,), ClassState.LIVE)
    return close_session(connection, stream, session, outcome, at, detail, generation)


def erase(connection: Connection, stream: str, class_id: int) -> None:
    """Delete every sample of a class that is to be forgotten; it is forgotten.

    The payloads are only listed here: overwritten before the transaction is certain, a kill would leave
    samples that the class can no longer be taken out with.

    Raises:
        ValueError: nobody has asked to forget it.
    """
    if connection.dialect.name == "sqlite":
        # Deleted rows are overwritten with zeros instead of being left in free pages.
        connection.exec_driver_sql("PRAGMA secure_delete=ON")
    _move(connection, stream, class_id, (ClassState.FORGETTING,), ClassState.FORGOTTEN)
    chosen = (samples.c.stream == stream, samples.c.class_id == class_id)
    connection.execute(
        insert(erasures).from_select(
            ["file", "start", "length"],
            select(samples.c.file, samples.c.start, samples.c.length).where(*chosen),
        )
    )
    connection.execute(delete(samples).where(*chosen))


def listed_erasures(connection: Connection) -> list[Span]:
    """Read which payloads without a row are still to be overwritten."""
    return [
        Span(*row) for row in connection.execute(select(erasures.c.file, erasures.c.start, erasures.c.length))
    ]


def strike_erasures(connection: Connection, spans: Sequence[Span]) -> None:
    """Take payloads that are overwritten off the list."""
    for span in spans:
        connection.execute(
            delete(erasures).where(erasures.c.file == span.file, erasures.c.start == span.start)
        )


def _move(
    connection: Connection, stream: str, class_id: int, sources: Sequence[ClassState], target: ClassState
) -> None:
    moved = connection.execute(
        update(classes)
        .where(
            classes.c.stream == stream,
            classes.c.id == class_id,
            classes.c.state.in_([state.value for state in sources]),
        )
        .values(state=target.value)
    )
    if moved.rowcount == 0:
        expected = " or ".join(sources)
        raise ValueError(f"stream {stream!r}: class {class_id} is not {expected}: it cannot become {target}")
