"""Messages that become visible together with how far their producer has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon.sources.base import Message, Place


@dataclass(frozen=True)
class Position:
    """How far a producer has come.

    Attributes:
        offset: the next one wanted, of whatever it works through.
        note: what the offset alone does not say.
    """

    offset: int
    note: str = ""


class Transactions(Protocol):
    """A producer whose messages and positions are one: both visible, or neither.

    One thread owns it and makes every call.
    """

    def position(self, place: Place) -> Position | None:
        """Return the position behind the last messages that became visible, None before the first.

        Raises:
            SourceUnavailable: the log cannot be reached.
            FencedProducer: another producer of the same name has taken over.
        """
        ...

    def send(self, topic: str, messages: Sequence[Message], place: Place, position: Position) -> None:
        """Append messages and move the position of a place, in one transaction.

        Raises:
            SourceUnavailable: it is not known whether it was done; `position` tells, once it answers.
            MessageRefused: the log will never take one of the messages; nothing was done.
            FencedProducer: another producer of the same name has taken over; nothing was done.
        """
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...
