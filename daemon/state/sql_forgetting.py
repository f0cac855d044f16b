"""The state's methods about forgetting a class and dropping generations, on a SQL database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from daemon.events.base import NewEvent
from daemon.state import forgetting, history, outbox
from daemon.state.base import Decision, SessionOutcome, SessionRecord
from daemon.state.transactions import Transactions


class SqlForgetting(Transactions):
    """One transaction per call; see `State` for what each means."""

    def refused_labels(self, stream: str) -> frozenset[str]:
        """Return the labels of the classes that are forgotten or being forgotten."""
        with self._reader.begin() as connection:
            return forgetting.refused_labels(connection, stream)

    def ask_forgetting(self, stream: str, class_id: int, decision: Decision) -> None:
        """Note that a class is to be forgotten.

        Raises:
            ValueError: it is neither pending nor live.
        """
        with self._write() as connection:
            history.add_decision(connection, stream, decision)
            forgetting.ask(connection, stream, class_id)

    def learnt_sample_ids(self, stream: str, class_id: int) -> Sequence[str]:
        """List the class's training samples that promoted sessions have learnt, ordered by id."""
        with self._reader.begin() as connection:
            return forgetting.learnt_sample_ids(connection, stream, class_id)

    def begin_forgetting(
        self,
        stream: str,
        class_id: int,
        *,
        method: str,
        at: float,
        events: Callable[[SessionRecord], Sequence[NewEvent]] | None = None,
    ) -> SessionRecord:
        """Create a running session that takes a class out of the live generation.

        Raises:
            ValueError: a session of the stream runs already, or nobody has asked to forget the class.
        """
        with self._write() as connection:
            record = forgetting.begin(connection, stream, class_id, method=method, at=at)
            if events is not None:
                outbox.add_events(connection, stream, events(record))
            return record

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
        """End a session that takes a class out; promoted, its samples are deleted.

        Raises:
            ValueError: the session does not run or forgets no class, or a promotion names no generation.
        """
        with self._write() as connection:
            if decision is not None:
                history.add_decision(connection, stream, decision)
            outbox.add_events(connection, stream, events)
            ended = forgetting.end(
                connection,
                stream,
                session,
                outcome=outcome,
                at=at,
                detail=detail,
                again=again,
                generation=generation,
                accuracy=accuracy,
                removed=removed,
            )
        self.finish_erasures()
        return ended

    def forget_unlearnt(
        self, stream: str, class_id: int, decision: Decision, events: Sequence[NewEvent] = ()
    ) -> None:
        """Delete every sample of a class that no generation holds.

        Raises:
            ValueError: nobody has asked to forget it.
        """
        with self._write() as connection:
            history.add_decision(connection, stream, decision)
            outbox.add_events(connection, stream, events)
            forgetting.erase(connection, stream, class_id)
        self.finish_erasures()

    def finish_erasures(self) -> None:
        """Overwrite the payloads of samples that were deleted; repeated after a kill, it is harmless."""
        with self._reader.begin() as connection:
            spans = forgetting.listed_erasures(connection)
        if spans:
            self._payloads.erase(spans)
            with self._write() as connection:
                forgetting.strike_erasures(connection, spans)

    def remember(self, stream: str, class_id: int, decision: Decision) -> None:
        """Let a forgotten class take samples again.

        Raises:
            ValueError: it is not forgotten.
        """
        with self._write() as connection:
            history.add_decision(connection, stream, decision)
            forgetting.remember(connection, stream, class_id)

    def remove_generations(self, stream: str, digests: Sequence[str]) -> None:
        """Take generations off the stream's list."""
        with self._write() as connection:
            history.remove_generations(connection, stream, digests)

    def generation_digests(self) -> frozenset[str]:
        """Return the digests of all generations of all streams."""
        with self._reader.begin() as connection:
            return history.generation_digests(connection)
