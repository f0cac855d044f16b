"""What a session's start and end say to the world; pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.messages.events import (
    ClassForgotten,
    ClassName,
    Fact,
    GateJudged,
    GenerationPublished,
    SessionFailed,
    SessionPromoted,
    SessionRejected,
    SessionStarted,
)
from daemon.state.base import ClassRecord, Decision, SessionOutcome, SessionRecord


def started_facts(
    stream: str, record: SessionRecord, reason: str, classes: Sequence[ClassRecord]
) -> tuple[Fact, ...]:
    """Tell of a session's start.

    Args:
        stream: the stream.
        record: the session.
        reason: the trigger's.
        classes: the class registry.
    """
    return (
        SessionStarted(
            stream=stream,
            session=record.id,
            new_classes=_names(record, classes),
            method=record.method,
            parent=record.parent,
            reason=reason,
        ),
    )


def ended_facts(
    stream: str,
    record: SessionRecord,
    outcome: SessionOutcome,
    *,
    reason: str,
    generation: str | None,
    accuracy: float | None,
    verdict: Decision | None,
    classes: Sequence[ClassRecord],
) -> tuple[Fact, ...]:
    """Tell of a session's end: the gate's verdict if there was one, the outcome, the publication.

    Args:
        stream: the stream.
        record: the session, still running.
        outcome: how it ends.
        reason: why, unless it is promoted.
        generation: digest of the generation, for a promotion.
        accuracy: A_T of that.
        verdict: the gate's.
        classes: the class registry.
    """
    facts: list[Fact] = []
    if verdict is not None:
        facts.append(
            GateJudged(
                stream=stream,
                session=record.id,
                passed=verdict.fired,
                reason=verdict.reason,
                facts=dict(verdict.facts),
            )
        )
    names = _names(record, classes)
    if outcome is SessionOutcome.PROMOTED:
        assert generation is not None, "a promotion names its generation"
        facts.append(
            SessionPromoted(
                stream=stream,
                session=record.id,
                new_classes=names,
                generation=generation,
                accuracy=accuracy,
            )
        )
        facts.append(GenerationPublished(stream=stream, generation=generation, session=record.id))
        if record.forgets is not None:
            facts.append(forgotten_fact(stream, record.forgets, generation, classes))
    else:
        ended = SessionRejected if outcome is SessionOutcome.REJECTED else SessionFailed
        facts.append(ended(stream=stream, session=record.id, new_classes=names, reason=reason))
    return tuple(facts)


def forgotten_fact(
    stream: str, class_id: int, generation: str | None, classes: Sequence[ClassRecord]
) -> ClassForgotten:
    """Tell that a class was forgotten; `generation` is None where none held it."""
    (label,) = (known.label for known in classes if known.id == class_id)
    return ClassForgotten(stream=stream, class_id=class_id, label=label, generation=generation)


def _names(record: SessionRecord, classes: Sequence[ClassRecord]) -> list[ClassName]:
    labels = {known.id: known.label for known in classes}
    return [ClassName(id=class_id, label=labels[class_id]) for class_id in record.new_classes]
