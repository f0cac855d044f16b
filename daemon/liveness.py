"""Whether the daemon's threads still turn: what /livez says of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from daemon.clock import Clock
from daemon.owner_thread import OwnerThread
from daemon.serving.service import Check
from daemon.settings import KafkaSource, SourceSettings

# Intake polls twice a second and a session's thread turns four times; a minute of silence is a hang.
STALL_SECONDS = 60.0


class Turning(Protocol):
    """A thread that says when it last showed that it lives, and what ended it unasked."""

    heartbeat: float
    failed: BaseException | None


def turn_check(thread: Turning, clock: Clock) -> Check:
    """Return the check that fails once a thread has ended by itself or hangs."""

    def check() -> tuple[bool, str]:
        if thread.failed is not None:
            return False, f"stopped: {thread.failed}"
        silent = clock.monotonic() - thread.heartbeat
        return silent < STALL_SECONDS, f"last turn {silent:.1f} s ago"

    return check


def topics_check(threads: Callable[[], Iterable[tuple[SourceSettings, OwnerThread]]], clock: Clock) -> Check:
    """Return the check of all threads that own a topic beside the labelled one.

    Args:
        threads: lists them, each with its stream's source.
        clock: the one their heartbeats are of.
    """

    def check() -> tuple[bool, str]:
        now, longest = clock.monotonic(), 0.0
        for source, thread in threads():
            if thread.failed is not None:
                return False, f"{thread.name} stopped: {thread.failed}"
            silent = now - thread.heartbeat
            # In one turn a broker that is away may hold up a look into a topic, and a delivery.
            waits = (
                source.request_timeout_seconds + source.delivery_timeout_seconds
                if isinstance(source, KafkaSource)
                else 0.0
            )
            if silent >= STALL_SECONDS + waits:
                return False, f"{thread.name}: last turn {silent:.1f} s ago"
            longest = max(longest, silent)
        return True, f"last turns at most {longest:.1f} s ago"

    return check
