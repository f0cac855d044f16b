"""Transactions in memory, which can be killed after the commit or be unavailable."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.errors import SourceUnavailable
from daemon.sources.base import Message, Place
from daemon.sources.transactions import Position


class MemoryTransactions:
    """Keeps what is sent; the next `failures` calls of `send` fail before anything is done.

    Attributes:
        sent: topic and message, in order.
        positions: as of the last transaction of each place.
        killed: die right behind the next commit, before anybody hears of it.
        closed: how often it was closed.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[str, Message]] = []
        self.positions: dict[Place, Position] = {}
        self.failures = 0
        self.killed = False
        self.closed = 0

    def position(self, place: Place) -> Position | None:
        """Return what was sent last."""
        return self.positions.get(place)

    def send(self, topic: str, messages: Sequence[Message], place: Place, position: Position) -> None:
        """Keep both, or neither."""
        if self.failures:
            self.failures -= 1
            raise SourceUnavailable("the log is away")
        self.sent += [(topic, message) for message in messages]
        self.positions[place] = position
        if self.killed:
            self.killed = False
            raise KeyboardInterrupt

    def close(self) -> None:
        """Count."""
        self.closed += 1
