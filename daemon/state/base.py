"""The narrow protocol between the daemon and its durable state.

Everything is keyed by the stream's name. Every method that changes something is one transaction and
checks the fencing epoch first, so a daemon that has lost the state directory writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from daemon.events.base import NewEvent, PendingEvent
from daemon.sources.base import Place
from daemon.state.records import (
    ClassBuffer,
    ClassRecord,
    ClassState,
    DeadSample,
    Decision,
    GenerationRecord,
    NewSample,
    SessionOutcome,
    SessionRecord,
    StoredSample,
    StoreResult,
    StreamCounts,
)

__all__ = [
    "ClassBuffer",
    "ClassRecord",
    "ClassState",
    "DeadSample",
    "Decision",
    "GenerationRecord",
    "NewSample",
    "SessionOutcome",
    "SessionRecord",
    "State",
    "StoreResult",
    "StoredSample",
    "StreamCounts",
]


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

        Raises:
            LabelForgotten: a label is one of `refused_labels`; nothing was written.
        """
        ...

    def withdraw(self, stream: str, ids: Sequence[str]) -> None:
        """Take samples out of the store and count them as dead letters instead; unknown ids are left out."""
        ...

    def counts(self, stream: str) -> StreamCounts:
        """Return the durable totals."""
        ...

    def refused_labels(self, stream: str) -> frozenset[str]:
        """Return the labels of the classes that are forgotten or being forgotten."""
        ...

    # -- classes and samples
    def classes(self, stream: str) -> Sequence[ClassRecord]:
        """List the class registry by id."""
        ...

    def buffers(self, stream: str) -> Sequence[ClassBuffer]:
        """List what is not learnt yet, by class id; classes without such samples are left out."""
        ...

    def session_sample_ids(self, stream: str, session: int) -> Sequence[str]:
        """List the training samples assigned to a session, by id: the same whatever order they came in."""
        ...

    def holdout_sample_ids(
        self, stream: str, class_ids: Sequence[int], limit_per_class: int
    ) -> Sequence[str]:
        """List the earliest holdout samples of each class, class by class and then by id."""
        ...

    def sample_labels(self, stream: str, ids: Sequence[str]) -> Sequence[int]:
        """Return the class id of each sample."""
        ...

    def payloads(self, stream: str, ids: Sequence[str]) -> Iterator[StoredSample]:
        """Yield samples with their payloads, in the order asked for."""
        ...

    # -- decisions and sessions
    def record_decision(self, stream: str, decision: Decision, events: Sequence[NewEvent] = ()) -> None:
        """Append to the decision log and put the events into the outbox, in one transaction."""
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

    # -- forgetting a class
    def ask_forgetting(self, stream: str, class_id: int, decision: Decision) -> None:
        """Note that a pending or live class is to be forgotten; from now on its label is refused."""
        ...

    def learnt_sample_ids(self, stream: str, class_id: int) -> Sequence[str]:
        """List the class's training samples that promoted sessions have learnt, ordered by id."""
        ...

    def begin_forgetting(
        self,
        stream: str,
        class_id: int,
        *,
        method: str,
        at: float,
        events: Callable[[SessionRecord], Sequence[NewEvent]] | None = None,
    ) -> SessionRecord:
        """Create a running session that takes a class out of the live generation."""
        ...

    def end_forgetting(
        self,
        stream: str,
        session: int,
        *,
        outcome: SessionOutcome,
        at: float,
        detail: Mapping[str, Any],
        again: bool = False,
        generation: str | None = None,
        accuracy: float | None = None,
        removed: Sequence[str] = (),
        decision: Decision | None = None,
        events: Sequence[NewEvent] = (),
    ) -> SessionRecord:
        """End a session that takes a class out, in one transaction.

        Promoted: every sample of the class is deleted, its class is forgotten, its generation gets the
        next number and becomes the live one, and the generations `removed` are the stream's no more.
        Otherwise the class is live as before or, to be tried `again`, still to be forgotten.
        """
        ...

    def forget_unlearnt(
        self, stream: str, class_id: int, decision: Decision, events: Sequence[NewEvent] = ()
    ) -> None:
        """Delete every sample of a class that no generation holds; it is forgotten."""
        ...

    def remember(self, stream: str, class_id: int, decision: Decision) -> None:
        """Let a forgotten class take samples again: it is pending, with its old id and no sample.

        Raises:
            ValueError: the class is not forgotten.
        """
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

    def remove_generations(self, stream: str, digests: Sequence[str]) -> None:
        """Take generations off the stream's list; the live one must not be among them."""
        ...

    def generation_digests(self) -> frozenset[str]:
        """Return the digests of all generations of all streams, configured or not."""
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

    def take_command(
        self, stream: str, place: Place, next_offset: int, command_id: str, dated: float | None = None
    ) -> bool:
        """Move the control topic's offset past a command and note its id, in one transaction.

        Args:
            stream: the stream.
            place: partition of its control topic.
            next_offset: wanted after the command.
            command_id: of the command.
            dated: what its age counts from, seconds since the epoch; None keeps the id for ever.

        Returns:
            Whether no command of that id is remembered.
        """
        ...

    def forget_commands(self, before: float, limit: int) -> int:
        """Forget the ids of the oldest commands dated before a time; return how many, at most `limit`."""
        ...

    def command_count(self) -> int:
        """Count the ids of commands that are remembered, of all streams."""
        ...

    def close(self) -> None:
        """Release the lock and every connection; idempotent."""
        ...
