"""What the daemon and its trainer process say to each other: JSON, one object a line.

The daemon writes jobs to the trainer's standard input, the trainer writes events to its standard
output. Samples never pass through: the trainer reads them from the store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from daemon.settings import BackboneSettings, LimitSettings


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Job(_Message):
    """One session to run, or to take up again from its checkpoint: classes to learn, or one to forget."""

    stream: str
    session: int
    """Number of the session in the state."""
    attempt: int
    new_classes: tuple[int, ...]
    parent: str | None
    """Digest of the generation to build on."""
    method: str
    options: dict[str, Any]
    seed: int
    state_directory: Path
    holdout_limit_per_class: int
    limits: LimitSettings
    forgets: int | None = None
    """Permanent id of the class to take out of the parent; None: the session learns."""
    backbone: BackboneSettings
    """`threads` here are the trainer's."""


class ProgressEvent(_Message):
    """The session has got this far."""

    event: Literal["progress"] = "progress"
    session: int
    phase: str
    done: float
    detail: dict[str, float] = {}


class DoneEvent(_Message):
    """The generation is complete on disk."""

    event: Literal["done"] = "done"
    session: int
    digest: str
    evaluation: dict[str, Any]
    certificate: dict[str, Any]


class FailedEvent(_Message):
    """The session cannot be trained; trying again would end the same way."""

    event: Literal["failed"] = "failed"
    session: int
    kind: str
    message: str


class UnreadableSample(_Message):
    """A stored sample that cannot be decoded."""

    id: str
    message: str


class UnreadableEvent(_Message):
    """The session has ended before its time: it can be run again without these samples."""

    event: Literal["unreadable"] = "unreadable"
    session: int
    samples: tuple[UnreadableSample, ...]


Event = Annotated[ProgressEvent | DoneEvent | FailedEvent | UnreadableEvent, Field(discriminator="event")]
EVENTS: TypeAdapter[Event] = TypeAdapter(Event)


def generations_directory(state_directory: Path) -> Path:
    """Return where the generations lie."""
    return state_directory / "generations"


def checkpoints_directory(state_directory: Path) -> Path:
    """Return where the sessions' checkpoints lie."""
    return state_directory / "checkpoints"


def checkpoint_directory(state_directory: Path, stream: str, session: int) -> Path:
    """Return where a session's checkpoint lies."""
    return checkpoints_directory(state_directory) / f"{stream}-{session}"
