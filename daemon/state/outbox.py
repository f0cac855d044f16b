"""Events waiting to be published, and commands taken; each function is part of one transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, insert, select

from daemon.events.base import NewEvent, PendingEvent
from daemon.events.kinds import EventKind
from daemon.state.ingest import chunks
from daemon.state.schema import commands, outbox


def add_events(connection: Connection, stream: str, events: Sequence[NewEvent]) -> None:
    """Append to the outbox."""
    for event in events:
        connection.execute(
            insert(outbox).values(
                stream=stream,
                id=event.id,
                kind=event.kind.value,
                subject=event.subject,
                at=event.at,
                data=dict(event.data),
            )
        )


def pending_events(connection: Connection, stream: str, limit: int) -> list[PendingEvent]:
    """Read the events that wait longest, in order."""
    rows = connection.execute(
        select(outbox).where(outbox.c.stream == stream).order_by(outbox.c.seq).limit(limit)
    )
    return [
        PendingEvent(row.seq, NewEvent(row.id, EventKind(row.kind), row.subject, row.at, row.data))
        for row in rows
    ]


def pending_event_count(connection: Connection, stream: str) -> int:
    """Count the events that wait."""
    return connection.scalar(select(func.count()).select_from(outbox).where(outbox.c.stream == stream)) or 0


def remove_events(connection: Connection, stream: str, seqs: Sequence[int]) -> None:
    """Take published events out."""
    for piece in chunks(seqs):
        connection.execute(delete(outbox).where(outbox.c.stream == stream, outbox.c.seq.in_(piece)))


def take_command(
    connection: Connection, stream: str, command_id: str, at: float, dated: float | None
) -> bool:
    """Note a command's id; return whether it was not there yet."""
    known = connection.scalar(
        select(commands.c.id).where(commands.c.stream == stream, commands.c.id == command_id)
    )
    if known is not None:
        return False
    connection.execute(insert(commands).values(stream=stream, id=command_id, taken_at=at, dated=dated))
    return True


def forget_commands(connection: Connection, before: float, limit: int) -> int:
    """Remove the ids of the oldest commands dated before a time; return how many."""
    old = connection.execute(
        select(commands.c.stream, commands.c.id)
        .where(commands.c.dated < before)
        .order_by(commands.c.dated)
        .limit(limit)
    ).all()
    for row in old:
        connection.execute(delete(commands).where(commands.c.stream == row.stream, commands.c.id == row.id))
    return len(old)


def command_count(connection: Connection) -> int:
    """Count the commands remembered, of all streams."""
    return connection.scalar(select(func.count()).select_from(commands)) or 0
