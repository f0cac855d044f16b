"""Liveness sees the threads that hang and those that ended by themselves."""

from __future__ import annotations

import pytest

from daemon.errors import FencedProducer
from daemon.liveness import STALL_SECONDS, topics_check, turn_check
from daemon.owner_thread import OwnerThread
from daemon.settings import EmbeddedSource, KafkaSource, SourceSettings
from tests.support.manual_clock import ManualClock

EMBEDDED = EmbeddedSource()
KAFKA = KafkaSource(
    bootstrap_servers=("b:1",), topic="t", request_timeout_seconds=10.0, delivery_timeout_seconds=20.0
)


class FencedThread(OwnerThread):
    """Finds at its first turn that another daemon has taken over."""

    def work(self) -> float:
        """Say so."""
        raise FencedProducer("another daemon has taken over")


def test_a_thread_that_does_not_turn_is_seen() -> None:
    """A minute after its last turn, and at once when it ended by itself."""
    clock = ManualClock()
    thread = FencedThread("intake-s", clock)
    check = turn_check(thread, clock)
    clock.advance(STALL_SECONDS - 1)
    assert check() == (True, "last turn 59.0 s ago")
    clock.advance(1)
    assert check() == (False, "last turn 60.0 s ago")
    thread.start()
    assert thread.join(10)
    assert check() == (False, "stopped: another daemon has taken over")


@pytest.mark.parametrize(("source", "patience"), [(EMBEDDED, STALL_SECONDS), (KAFKA, STALL_SECONDS + 30)])
def test_a_topic_thread_that_hangs_is_seen(source: SourceSettings, patience: float) -> None:
    """After a minute, and what a broker that is away may hold up on top of it."""
    clock = ManualClock()
    threads = [(source, FencedThread(name, clock)) for name in ("events-s", "requests-s")]
    check = topics_check(lambda: threads, clock)
    clock.advance(patience - 1)
    assert check()[0]
    clock.advance(2)
    assert check() == (False, f"events-s: last turn {patience + 1:.1f} s ago")


def test_a_fenced_thread_is_seen_with_the_reason() -> None:
    """While the others are well."""
    clock = ManualClock()
    fenced = FencedThread("requests-s", clock)
    check = topics_check(lambda: [(EMBEDDED, FencedThread("events-s", clock)), (EMBEDDED, fenced)], clock)
    assert check()[0]
    fenced.start()
    assert fenced.join(10)
    assert check() == (False, "requests-s stopped: another daemon has taken over")
