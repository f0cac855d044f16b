"""How long to wait before the next attempt."""

from __future__ import annotations

import random

from daemon.backoff import Backoff


def test_backoff_doubles_with_jitter_up_to_its_longest() -> None:
    """Each delay lies between half and all of its step; a success begins again."""
    backoff = Backoff(random.Random(1), first=1.0, longest=4.0)
    delays = [backoff.delay() for _ in range(5)]
    for delay, step in zip(delays, (1.0, 2.0, 4.0, 4.0, 4.0), strict=True):
        assert step / 2 <= delay <= step
    backoff.reset()
    assert backoff.delay() <= 1.0
