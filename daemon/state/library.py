"""Reading the class registry and the stored samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from sqlalchemy import Connection, false, func, or_, select, true

from daemon.sources.base import Place
from daemon.state.base import ClassBuffer, ClassRecord, ClassState, SessionOutcome, StoredSample
from daemon.state.digest import digests
from daemon.state.ingest import chunks
from daemon.state.payload_files import PayloadFiles, Span
from daemon.state.schema import classes, samples, sessions

V = TypeVar("V")


def class_records(connection: Connection, stream: str) -> list[ClassRecord]:
    """Read the class registry by id."""
    rows = connection.execute(select(classes).where(classes.c.stream == stream).order_by(classes.c.id))
    return [ClassRecord(row.id, row.label, ClassState(row.state), row.first_seen) for row in rows]


def buffers(connection: Connection, stream: str) -> list[ClassBuffer]:
    """Count what no promoted session has used, per class.

    The samples of a running session count: they are learnt only once it is promoted. Holdout samples
    belong to no session; they count as long as their class is pending.
    """
    running = connection.scalars(
        select(sessions.c.id).where(
            sessions.c.stream == stream, sessions.c.outcome == SessionOutcome.RUNNING.value
        )
    ).all()
    unlearnt = samples.c.session.is_(None)
    span = (func.count(), func.min(samples.c.arrived_at), func.max(samples.c.arrived_at))
    train = connection.execute(
        select(samples.c.class_id, *span)
        .where(
            samples.c.stream == stream,
            samples.c.holdout == false(),
            or_(unlearnt, samples.c.session.in_(running)) if running else unlearnt,
        )
        .group_by(samples.c.class_id)
    ).all()
    records = {record.id: record for record in class_records(connection, stream)}
    pending = [record.id for record in records.values() if record.state is ClassState.PENDING]
    held = [
        row
        for piece in chunks(pending)
        for row in connection.execute(
            select(samples.c.class_id, *span)
            .where(
                samples.c.stream == stream,
                samples.c.holdout == true(),
                unlearnt,
                samples.c.class_id.in_(piece),
            )
            .group_by(samples.c.class_id)
        )
    ]
    trained = {class_id: (count, first, last) for class_id, count, first, last in train}
    held_out = {class_id: (count, first, last) for class_id, count, first, last in held}
    result = []
    for class_id in sorted(trained.keys() | held_out.keys()):
        spans = [s for s in (trained.get(class_id), held_out.get(class_id)) if s is not None]
        record = records[class_id]
        result.append(
            ClassBuffer(
                class_id=class_id,
                label=record.label,
                state=record.state,
                train=trained[class_id][0] if class_id in trained else 0,
                holdout=held_out[class_id][0] if class_id in held_out else 0,
                first_arrival=min(first for _, first, _ in spans),
                last_arrival=max(last for _, _, last in spans),
            )
        )
    return result


def session_sample_ids(connection: Connection, stream: str, session: int) -> list[str]:
    """Read the training samples of a session, in the order of their ids.

    Arrival order would differ from run to run: partitions interleave as they please, and with another order
    the same samples give a generation of another digest.
    """
    return list(
        connection.scalars(
            select(samples.c.id)
            .where(samples.c.stream == stream, samples.c.session == session, samples.c.holdout == false())
            .order_by(samples.c.id)
        )
    )


def holdout_sample_ids(
    connection: Connection, stream: str, class_ids: Sequence[int], limit_per_class: int
) -> list[str]:
    """Read the earliest holdout samples of each class: classes in the order asked for, then by sample id."""
    return [
        sample_id
        for class_id in class_ids
        for sample_id in sorted(
            connection.scalars(
                select(samples.c.id)
                .where(
                    samples.c.stream == stream,
                    samples.c.holdout == true(),
                    samples.c.session.is_(None),
                    samples.c.class_id == class_id,
                )
                .order_by(samples.c.arrived_at, samples.c.partition, samples.c.offset, samples.c.position)
                .limit(limit_per_class)
            )
        )
    ]


def sample_labels(connection: Connection, stream: str, ids: Sequence[str]) -> list[int]:
    """Read the class id of each sample."""
    found: dict[str, int] = {}
    for piece in chunks(ids):
        rows = connection.execute(
            select(samples.c.id, samples.c.class_id).where(samples.c.digest.in_(digests(stream, piece)))
        )
        found.update({row.id: row.class_id for row in rows})
    return [_known(found, stream, sample_id) for sample_id in ids]


def stored_samples(
    connection: Connection, payloads: PayloadFiles, stream: str, ids: Sequence[str]
) -> list[StoredSample]:
    """Read at most one statement's worth of samples with their payloads, in the order asked for."""
    rows = connection.execute(select(samples).where(samples.c.digest.in_(digests(stream, ids)))).all()
    contents = payloads.read([Span(row.file, row.start, row.length) for row in rows])
    found = {
        row.id: StoredSample(
            id=row.id,
            class_id=row.class_id,
            content_type=row.content_type,
            payload=payload,
            holdout=row.holdout,
            place=Place(row.topic, row.partition),
            offset=row.offset,
            position=row.position,
        )
        for row, payload in zip(rows, contents, strict=True)
    }
    return [_known(found, stream, sample_id) for sample_id in ids]


def _known(found: Mapping[str, V], stream: str, sample_id: str) -> V:
    if sample_id not in found:
        raise ValueError(f"stream {stream!r} has no sample {sample_id!r}: ask for ids the state has listed")
    return found[sample_id]
