"""The narrow protocol between the daemon and its durable state.

Everything is keyed by the stream's name. Every method that changes something is one transaction and
checks the fencing epoch first, so a daemon that has lost the state directory writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from daemon.errors import DeadLetterReason
from daemon.events.base import NewEvent, PendingEvent
from daemon.sources.base import Place


class ClassState(StrEnum):
    """Where a class of the registry stands."""

    PENDING = "pending"
    LIVE = "live"


class SessionOutcome(StrEnum):
    """How a session stands, or ended."""

    RUNNING = "running"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(frozen=True)
class NewSample:
    """A validated sample on its way into the store."""

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
    """One class-incremental session.

    Attributes:
        id: counts from 0 per stream, failed ones included.
        new_classes: permanent ids of the classes it introduces.
        attempt: how often its training was started; above 1 after a crash or a restart.
        parent: digest of the generation it builds on, None for the first.
        generation: digest of the generation it made, None until then.
        seed, method, settings: what makes it reproducible.
        detail: the outcome's reason, the gate's numbers, durations in seconds.
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


class State(Protocol):
    """Everything durable but the generations' files."""

    # -- intake
    def next_offsets(self, stream: str) -> Mapping[Place, int]:
        """Return the next offset wanted per partition."""
        ...

    def store(
        self,
        stream: str,
        samples: Sequence[NewSample],
        dead: Sequence[DeadSample],
        next_offsets: Mapping[Place, int],
    ) -> StoreResult:
        """Store samples, count dead letters and move the offsets, in one transaction.

        A sample id that the stream already has is counted as a duplicate and not stored again. An
        unknown label gets the next class id.
        """
        ...

    def counts(self, stream: str) -> StreamCounts:
        """Return the durable totals."""
        ...

    # -- classes and samples
    def classes(self, stream: str) -> Sequence[ClassRecord]:
        """List the class registry by id."""
        ...

    def buffers(self, stream: str) -> Sequence[ClassBuffer]:
        """List what is not learnt yet, by class id; classes without such samples are left out."""
        ...

    def session_sample_ids(self, stream: str, session: int) -> Sequence[str]:
        """List the training samples assigned to a session, in arrival order."""
        ...

    def holdout_sample_ids(
        self, stream: str, class_ids: Sequence[int], limit_per_class: int
    ) -> Sequence[str]:
        """List holdout samples of some classes, the earliest ones first."""
        ...

    def sample_labels(self, stream: str, ids: Sequence[str]) -> Sequence[int]:
        """Return the class id of each sample."""
        ...

    def payloads(self, stream: str, ids: Sequence[str]) -> Iterator[StoredSample]:
        """Yield samples with their payloads, in the order asked for."""
        ...

    # -- decisions and sessions
    def record_decision(self, stream: str, decision: Decision) -> None:
        """Append to the decision log."""
        ...

    def decisions(self, stream: str, limit: int) -> Sequence[Decision]:
        """List the latest decisions, newest first."""
        ...

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
        """Create a running session and assign to it every unlearnt training sample of its classes.

        Unlearnt samples of live classes are assigned too. The parent is the live generation. What
        `events` makes of the new session goes into the outbox; it must not call the state.
        """
        ...

    def restart_session(self, stream: str, session: int) -> SessionRecord:
        """Count one more attempt of a running session."""
        ...

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
        """End a session and put the events into the outbox, in one transaction.

        Promoted: its classes become live, its generation gets the next number and becomes the live
        one. Otherwise: its samples become unlearnt again, and a rejected generation gets no number.
        """
        ...

    def sessions(self, stream: str) -> Sequence[SessionRecord]:
        """List the sessions by id."""
        ...

    # -- generations
    def generations(self, stream: str) -> Sequence[GenerationRecord]:
        """List the stream's generations by number."""
        ...

    def live(self, stream: str) -> GenerationRecord | None:
        """Return the generation that answers, None before the first promotion."""
        ...

    def set_live(
        self, stream: str, digest: str, decision: Decision, events: Sequence[NewEvent] = ()
    ) -> GenerationRecord:
        """Move the live pointer to a generation the stream already has (rollback and forward).

        Raises:
            ValueError: the stream has no such generation.
        """
        ...

    # -- events and commands
    def pending_events(self, stream: str, limit: int) -> Sequence[PendingEvent]:
        """List the outbox, the events that wait longest first."""
        ...

    def pending_event_count(self, stream: str) -> int:
        """Count the outbox."""
        ...

    def events_published(self, stream: str, seqs: Sequence[int]) -> None:
        """Take events out of the outbox."""
        ...

    def move_offset(self, stream: str, place: Place, next_offset: int) -> None:
        """Set the next offset wanted of a partition that no sample comes from: of commands or requests."""
        ...

    def take_command(self, stream: str, place: Place, next_offset: int, command_id: str) -> bool:
        """Move the control topic's offset past a command and note its id, in one transaction.

        Returns:
            Whether a command of that id has never been taken before.
        """
        ...

    def close(self) -> None:
        """Release the lock and every connection; idempotent."""
        ...
