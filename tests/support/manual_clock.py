"""A clock that only moves when somebody waits on it or moves it."""

from __future__ import annotations

import threading


class ManualClock:
    """Wall clock and monotonic clock in one; waiting returns at once and counts as time passed."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._time = start
        self.waits: list[float] = []

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self._time

    def monotonic(self) -> float:
        """Return the same seconds."""
        return self._time

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Let the seconds pass unless the event is set already."""
        if event.is_set():
            return True
        self.waits.append(seconds)
        self._time += seconds
        return event.is_set()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._time += seconds
