"""How long a daemon's consumer went without a poll, measured where it polls."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer

from tests.support import consumer_process


def record(path: Path) -> None:
    """Have the process of this daemon's consumer write the longest time between two polls to a file."""
    consumer_process.use("gaps", str(path))


def record_here(path: Path) -> None:
    """Have this process write the longest time between two polls of a consumer, in seconds, to a file."""
    original = KafkaConsumer.poll
    last: dict[int, float] = {}
    longest = 0.0

    def poll(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal longest
        now = time.monotonic()
        gap = now - last.get(id(self), now)
        last[id(self)] = now
        if gap > longest:
            longest = gap
            path.write_text(repr(longest))
        return original(self, *arguments, **named)

    KafkaConsumer.poll = poll
