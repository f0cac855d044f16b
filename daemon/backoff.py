"""How long to wait before trying again."""

from __future__ import annotations

import random


class Backoff:
    """Delays that double from `first` to `longest` seconds, each shortened at random by up to half.

    The jitter keeps several streams that lost the same broker from returning in step.
    """

    def __init__(self, random_source: random.Random, first: float = 0.5, longest: float = 10.0) -> None:
        self._random = random_source
        self._first = first
        self._longest = longest
        self._next = first

    def delay(self) -> float:
        """Return the next delay in seconds."""
        delay = self._next * self._random.uniform(0.5, 1.0)
        self._next = min(self._longest, self._next * 2)
        return delay

    def reset(self) -> None:
        """Begin again with the first delay, after a success."""
        self._next = self._first
