"""What the control endpoints ask of the daemon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from daemon.sources.base import Message
from daemon.state.base import ClassRecord, Decision, GenerationRecord, SessionRecord


class Control(Protocol):
    """The daemon as an operator sees it; called from several threads, may block on the state.

    Every method raises `UnknownStream` for a stream that is not configured. Mappings are JSON-able.
    """

    def status(self, stream: str) -> Mapping[str, Any]:
        """Summarise the stream: intake, buffers, session, live generation, swaps."""
        ...

    def sessions(self, stream: str) -> Sequence[SessionRecord]:
        """List the sessions by id."""
        ...

    def classes(self, stream: str) -> Sequence[ClassRecord]:
        """List the class registry by id."""
        ...

    def generations(self, stream: str) -> Sequence[GenerationRecord]:
        """List the generations by number."""
        ...

    def decisions(self, stream: str, limit: int) -> Sequence[Decision]:
        """List the latest decisions, newest first."""
        ...

    def flush(self, stream: str) -> Mapping[str, Any]:
        """Start a session with what is there, without waiting for the trigger.

        Returns:
            Whether one was started, and why or why not.
        """
        ...

    def pause(self, stream: str) -> Mapping[str, Any]:
        """Stop taking records in until `resume`; requests go on being answered."""
        ...

    def resume(self, stream: str) -> Mapping[str, Any]:
        """Take records in again."""
        ...

    def rollback(self, stream: str, generation: str | None) -> Mapping[str, Any]:
        """Make an earlier generation the live one.

        Args:
            stream: the stream.
            generation: its digest or number; None for the one that was live before.

        Raises:
            UnknownGeneration: the stream has no such generation, or no earlier one.
            SwapError: it could not be made live; the present one still answers.
        """
        ...

    def forget(self, stream: str, label: str) -> Mapping[str, Any]:
        """Have a class forgotten: its samples deleted, and every generation that holds it.

        Returns:
            Whether it is accepted already or queued, and what happens now.

        Raises:
            UnknownClass: the stream has no class of that label.
            ForgettingRefused: the method cannot, nothing would be left, or it is forgotten already.
        """
        ...

    def remember(self, stream: str, label: str) -> Mapping[str, Any]:
        """Let a forgotten class be learnt again, from samples that are still to come.

        Raises:
            UnknownClass: the stream has no class of that label.
            ForgettingRefused: the class is not forgotten.
        """
        ...

    def ingest(self, stream: str, message: Message) -> Mapping[str, Any]:
        """Append a message to the stream's topic and return once it is durable.

        Raises:
            BadRequest: the stream's source takes no messages over HTTP.
            SourceUnavailable: the topic cannot be written now; the message may be sent again.
        """
        ...
