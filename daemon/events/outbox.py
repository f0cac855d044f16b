"""Facts as events for the outbox."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Sequence

from daemon.events.base import NewEvent
from daemon.messages.events import Fact


class OutboxEvents:
    """`Events` with ids of their own.

    Args:
        streams: those whose events are on.
        new_id: makes an id that is unique over all daemons.
    """

    def __init__(
        self, streams: Collection[str], new_id: Callable[[], str] = lambda: str(uuid.uuid4())
    ) -> None:
        self._streams = frozenset(streams)
        self._new_id = new_id

    def of(self, at: float, *facts: Fact) -> Sequence[NewEvent]:
        """Return the facts as events, in order."""
        return [
            NewEvent(self._new_id(), fact.kind, fact.subject, at, fact.model_dump(mode="json"))
            for fact in facts
            if fact.stream in self._streams
        ]
