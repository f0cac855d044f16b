"""What the durable state holds, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from daemon.errors import DeadLetterReason
from daemon.sources.base import Place


class ClassState(StrEnum):
    """Where a class of the registry stands.

    A class that is being forgotten, or is forgotten, takes no more samples. Its label and its id stay, as
    the tombstone that they are refused by; remembered, it is pending again under the same id.
    """

    PENDING = "pending"
    LIVE = "live"
    FORGETTING = "forgetting"
    FORGOTTEN = "forgotten"


class SessionOutcome(StrEnum):
    """How a session stands, or ended."""

    RUNNING = "running"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    FAILED = "failed"


class NewSample(NamedTuple):
    """A validated sample on its way into the store; a tuple, which is made faster than a frozen object."""

    id: str
    label: str
    content_type: str
    payload: bytes
    place: Place
    offset: int
    position: int
    timestamp: float


@dataclass(frozen=True)
class DeadSample:
    """A record, or one sample of a class batch, that can never be accepted."""

    place: Place
    offset: int
    position: int
    reason: DeadLetterReason
    message: str


@dataclass(frozen=True)
class StoredSample:
    """A sample as the store has it."""

    id: str
    class_id: int
    content_type: str
    payload: bytes
    holdout: bool
    place: Place
    offset: int
    position: int


@dataclass(frozen=True)
class StoreResult:
    """What one transaction took in, in samples; those given but not stored were duplicates.

    Attributes:
        duplicate_ids: ids that the stream had before. Of an id given twice in one call the first is
            stored; it is not in this set.
    """

    stored: int
    duplicate_ids: frozenset[str]
    dead_lettered: int
    new_class_ids: tuple[int, ...]


@dataclass(frozen=True)
class ClassRecord:
    """One row of the class registry; ids are permanent and never reused."""

    id: int
    label: str
    state: ClassState
    first_seen: float


@dataclass(frozen=True)
class ClassBuffer:
    """What has arrived for a class and is not learnt yet.

    Attributes:
        train, holdout: counts of samples that no promoted session has used.
        first_arrival, last_arrival: when the first and last of them were stored, seconds since the epoch.
    """

    class_id: int
    label: str
    state: ClassState
    train: int
    holdout: int
    first_arrival: float
    last_arrival: float


@dataclass(frozen=True)
class Decision:
    """One evaluated decision (a trigger, a gate, a rollback), with its reason."""

    at: float
    kind: str
    policy: str
    fired: bool
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionRecord:
    """One session: it introduces classes, or takes one out.

    Attributes:
        id: counts from 0 per stream, failed ones included.
        new_classes: permanent ids of the classes it introduces.
        attempt: how often its training was started; above 1 after a crash or a restart.
        parent: digest of the generation it builds on, None for the first.
        generation: digest of the generation it made, None until then.
        seed, method, settings: what makes it reproducible.
        detail: the outcome's reason, the gate's numbers, durations in seconds.
        forgets: permanent id of the class that it takes out, None for a session that learns.
    """

    id: int
    new_classes: tuple[int, ...]
    outcome: SessionOutcome
    attempt: int
    started_at: float
    ended_at: float | None
    parent: str | None
    generation: str | None
    seed: int
    method: str
    settings: Mapping[str, Any]
    detail: Mapping[str, Any] = field(default_factory=dict)
    forgets: int | None = None


@dataclass(frozen=True)
class GenerationRecord:
    """A generation the stream has had; `number` ascends from 1 and is what metrics show."""

    number: int
    digest: str
    session: int
    created_at: float
    accuracy: float | None


@dataclass(frozen=True)
class StreamCounts:
    """Durable totals of a stream, in samples; they reconcile across restarts."""

    stored: int
    duplicate: int
    dead_lettered: int
