"""What the parts that make events, keep them and publish them have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from daemon.events.kinds import EventKind
from daemon.messages.events import Fact


@dataclass(frozen=True)
class NewEvent:
    """An event on its way into the outbox.

    Attributes:
        id: unique, and the same each time it is published.
        kind, subject: what happened, to what.
        at: when, seconds since the epoch.
        data: JSON-able.
    """

    id: str
    kind: EventKind
    subject: str
    at: float
    data: Mapping[str, Any]


@dataclass(frozen=True)
class PendingEvent:
    """An event in the outbox; `seq` ascends in the order of what happened."""

    seq: int
    event: NewEvent


class Events(Protocol):
    """Makes the events that a change of the state is written with, in one transaction.

    So an event is published if and only if the change happened, whatever is killed when.
    """

    def of(self, at: float, *facts: Fact) -> Sequence[NewEvent]:
        """Return the facts as events; none for a stream whose events are off.

        Args:
            at: when it happened, seconds since the epoch.
            facts: what happened, in order.
        """
        ...


class NoEvents:
    """`Events` of a daemon without any."""

    def of(self, at: float, *facts: Fact) -> Sequence[NewEvent]:
        """Return nothing."""
        del at, facts
        return ()
