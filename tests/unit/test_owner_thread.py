"""One thread with one owner: troubles that pass are waited out, everything else ends it and is shown."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from daemon.errors import FencedOwner, SourceUnavailable, UnknownStream
from daemon.owner_thread import OwnerThread
from tests.support.manual_clock import ManualClock


class ScriptedThread(OwnerThread):
    """Waits or fails as its script says, turn by turn; at the end stops itself."""

    def __init__(self, clock: ManualClock, script: Sequence[float | Exception]) -> None:
        super().__init__("scripted-s", clock, random.Random(1))
        self.script = list(script)
        self.released = 0

    def work(self) -> float:
        """Follow the script."""
        step = self.script.pop(0)
        if not self.script:
            self.stop()
        if isinstance(step, Exception):
            raise step
        return step

    def release(self) -> None:
        """Count."""
        self.released += 1


def test_turns_follow_one_another_after_the_time_they_ask_for() -> None:
    """It waits as each turn says, and ends, releasing what it owns once."""
    clock = ManualClock()
    thread = ScriptedThread(clock, [1.0, 0.0, 2.5, 9.0])
    thread.start()
    assert thread.join(10)
    assert clock.waits == [1.0, 0.0, 2.5]
    assert (thread.failed, thread.released) == (None, 1)


def test_a_passing_trouble_is_waited_out_longer_and_longer() -> None:
    """Delays double, shortened by up to half; a good turn begins anew."""
    away = SourceUnavailable("away")
    thread = ScriptedThread(ManualClock(), [away, away, away, 0.0, away, 0.0])
    delays = [thread.turn() for _ in range(5)]
    assert 0.25 <= delays[0] <= 0.5 <= delays[1] <= 1.0 <= delays[2] <= 2.0
    assert delays[3] == 0.0
    assert 0.25 <= delays[4] <= 0.5


def test_the_same_trouble_is_told_once() -> None:
    """Another one is told, and the same one again after it was over."""
    one, two = SourceUnavailable("one"), SourceUnavailable("two")
    thread = ScriptedThread(ManualClock(), [one, one, two, two, 0.0, two, 0.0])
    with capture_logs() as told:
        for _ in range(6):
            thread.turn()
    assert [(entry["event"], entry["error"]) for entry in told] == [
        ("thread.waiting", "one"),
        ("thread.waiting", "two"),
        ("thread.waiting", "two"),
    ]


@pytest.mark.parametrize("error", [FencedOwner("lost"), UnknownStream("not its kind"), ZeroDivisionError()])
def test_everything_else_ends_it_and_is_shown(error: Exception) -> None:
    """What it owns is released; nobody had to ask."""
    thread = ScriptedThread(ManualClock(), [0.0, error, 0.0])
    with capture_logs() as told:
        thread.start()
        assert thread.join(10)
    assert thread.failed is error
    assert thread.released == 1
    assert [entry["event"] for entry in told] == ["thread.failed"]


def test_a_subclass_says_which_troubles_pass() -> None:
    """The default is that of streams."""

    class Patient(ScriptedThread):
        passing = (UnknownStream,)

    assert Patient(ManualClock(), [UnknownStream("soon"), 0.0]).turn() > 0
    with pytest.raises(SourceUnavailable):
        Patient(ManualClock(), [SourceUnavailable("away"), 0.0]).turn()


def test_the_heart_beats_at_each_turn() -> None:
    """So a turn that hangs is seen."""
    clock = ManualClock()
    thread = ScriptedThread(clock, [0.0, SourceUnavailable("away"), 0.0])
    for _ in range(2):
        clock.advance(7.0)
        thread.turn()
        assert thread.heartbeat == clock.monotonic()
