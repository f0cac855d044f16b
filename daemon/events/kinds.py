"""The events there are."""

from __future__ import annotations

from enum import StrEnum


class EventKind(StrEnum):
    """The events there are: the closed label set of `accrete_events_published_total`."""

    SESSION_STARTED = "session.started"
    SESSION_PROMOTED = "session.promoted"
    SESSION_REJECTED = "session.rejected"
    SESSION_FAILED = "session.failed"
    GATE_JUDGED = "gate.judged"
    GENERATION_PUBLISHED = "generation.published"
    GENERATION_ROLLED_BACK = "generation.rolled_back"
    CLASS_FORGOTTEN = "class.forgotten"
    COMMAND_ENDED = "command.ended"
