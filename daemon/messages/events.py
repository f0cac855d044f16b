"""What a stream tells the world: the data of each event, and the CloudEvent around it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from daemon.events.kinds import EventKind
from daemon.messages.formats import CLOUDEVENT_SPEC_VERSION, CONTENT_TYPE
from daemon.messages.models import Format
from daemon.sources.base import Message

JSON = "application/json"


class Fact(Format):
    """Data of an event; `kind` says which, and is not part of the data."""

    kind: ClassVar[EventKind]
    schema_version: Literal[1] = 1
    """Version of this format."""
    stream: str
    """The stream it happened to."""

    @property
    def subject(self) -> str:
        """What within the stream it is about: CloudEvents' `subject`."""
        raise NotImplementedError


class ClassName(Format):
    """A class by its permanent id and its label."""

    id: int
    """Permanent id."""
    label: str
    """Label."""


class SessionFact(Fact):
    """Something about a session."""

    session: int
    """Number of the session, from 0 per stream."""
    new_classes: list[ClassName]
    """Classes that the session introduces."""

    @property
    def subject(self) -> str:
        """Name the session."""
        return f"sessions/{self.session}"


class SessionStarted(SessionFact):
    """A session has started."""

    kind = EventKind.SESSION_STARTED
    method: str
    """The learner's method."""
    parent: str | None
    """Digest of the generation it builds on; null for the first."""
    reason: str
    """Why it started now."""


class SessionPromoted(SessionFact):
    """A session has ended and its generation is live."""

    kind = EventKind.SESSION_PROMOTED
    generation: str
    """Digest of the generation."""
    accuracy: float | None
    """A_T on the holdout, from 0 to 1."""


class SessionRejected(SessionFact):
    """A session has ended and its generation is not put live."""

    kind = EventKind.SESSION_REJECTED
    reason: str
    """Why not."""


class SessionFailed(SessionFact):
    """A session has ended without a generation."""

    kind = EventKind.SESSION_FAILED
    reason: str
    """What went wrong."""


class GateJudged(Fact):
    """The gate has judged a new generation."""

    kind = EventKind.GATE_JUDGED
    session: int
    """Number of the session that made it."""
    passed: bool
    """Whether every condition holds."""
    reason: str
    """Each condition that does not hold."""
    facts: dict[str, Any]
    """What was measured on the holdout."""

    @property
    def subject(self) -> str:
        """Name the session."""
        return f"sessions/{self.session}"


class GenerationPublished(Fact):
    """A new generation is live: durably so, and served within the same moment."""

    kind = EventKind.GENERATION_PUBLISHED
    generation: str
    """Digest of the generation."""
    session: int
    """Number of the session that made it."""

    @property
    def subject(self) -> str:
        """Name the generation."""
        return f"generations/{self.generation}"


class GenerationRolledBack(Fact):
    """An operator has made another generation live, an earlier or again a later one."""

    kind = EventKind.GENERATION_ROLLED_BACK
    generation: str
    """Digest of the generation that is live now."""
    generation_number: int
    """Its number."""
    previous: str | None
    """Digest of the one that was live before."""

    @property
    def subject(self) -> str:
        """Name the generation."""
        return f"generations/{self.generation}"


class ClassForgotten(Fact):
    """A class was forgotten: no generation holds it any more, and every sample of it is deleted."""

    kind = EventKind.CLASS_FORGOTTEN
    class_id: int
    """Permanent id of the class."""
    label: str
    """Its label, which is refused from now on."""
    generation: str | None
    """Digest of the generation without it; null if no generation held it."""

    @property
    def subject(self) -> str:
        """Name the class."""
        return f"classes/{self.class_id}"


class CommandEnded(Fact):
    """A command of the control topic was carried out, or could not be."""

    kind = EventKind.COMMAND_ENDED
    command: str
    """Which command."""
    command_id: str
    """Its id, as its sender gave it."""
    done: bool
    """Whether it was carried out."""
    reason: str
    """What came of it, or why it was not carried out."""

    @property
    def subject(self) -> str:
        """Name the command."""
        return f"commands/{self.command_id}"


FACTS: tuple[type[Fact], ...] = (
    SessionStarted,
    SessionPromoted,
    SessionRejected,
    SessionFailed,
    GateJudged,
    GenerationPublished,
    GenerationRolledBack,
    ClassForgotten,
    CommandEnded,
)


def event_message(
    stream: str, event_id: str, kind: EventKind, subject: str, at: float, data: Mapping[str, Any]
) -> Message:
    """Build a CloudEvent in binary mode: attributes in `ce_` headers, the data as JSON.

    Args:
        stream: whose event it is; also the key, so that the events of a stream stay in order.
        event_id: the same each time the event is sent; a reader may drop one that it has seen.
        kind: what happened.
        subject: to what.
        at: when, seconds since the epoch.
        data: JSON-able.
    """
    attributes = {
        "ce_specversion": CLOUDEVENT_SPEC_VERSION,
        "ce_id": event_id,
        "ce_source": f"/accrete/streams/{stream}",
        "ce_type": f"accrete.{kind.value}.v1",
        "ce_subject": subject,
        "ce_time": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        CONTENT_TYPE: JSON,
    }
    headers = {name: text.encode() for name, text in attributes.items()}
    return Message(json.dumps(data).encode(), key=stream.encode(), headers=headers, idempotency_key=event_id)
