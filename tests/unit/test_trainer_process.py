"""The trainer process, with stand-ins for the worker that work, crash, hang, babble or end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from daemon.sessions import trainer as trainer_module
from daemon.sessions.job import EVENTS, DoneEvent, Event, FailedEvent, Job, ProgressEvent
from daemon.sessions.trainer import TrainerProcess
from daemon.settings import BackboneSettings, LimitSettings, LogSettings, TrainerSettings

DONE = DoneEvent(session=0, digest="d" * 64, evaluation={"a_t": None}, certificate={"holds": True})
SAY = f"print({DONE.model_dump_json()!r}, flush=True)"
# Answers every job with a result, and ends with its input like the real one.
OBEDIENT = f"import sys\nfor line in sys.stdin:\n    {SAY}"


def job(session: int = 0) -> Job:
    """Build a job."""
    return Job(
        stream="s",
        session=session,
        attempt=1,
        new_classes=(0, 1),
        parent=None,
        method="sgds",
        options={"adapter_blocks": 2},
        seed=3,
        state_directory=Path("state"),
        holdout_limit_per_class=10,
        limits=LimitSettings(max_image_pixels=100),
        backbone=BackboneSettings(threads=1),
    )


@contextmanager
def running(script: str, niceness: int = 0) -> Iterator[TrainerProcess]:
    """Run a trainer whose process is a small script."""
    trainer = TrainerProcess(
        TrainerSettings(niceness=niceness), LogSettings(), [sys.executable, "-c", script]
    )
    try:
        yield trainer
    finally:
        trainer.stop()


def heard(trainer: TrainerProcess, count: int) -> list[Event]:
    """Wait for some events, at most twenty seconds."""
    events: list[Event] = []
    deadline = time.monotonic() + 20
    while len(events) < count and time.monotonic() < deadline:
        events += trainer.events(0.2)
    return events


def crash_of(trainer: TrainerProcess) -> str | None:
    """Follow the job as the supervisor does, until it crashed or twenty seconds have passed."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        trainer.events(0.05)
        crash = trainer.crashed()
        if crash is not None:
            return crash
    return None


def test_a_job_survives_the_way_through_json() -> None:
    """What the worker reads is what the daemon wrote, paths and backbone included."""
    assert Job.model_validate_json(job().model_dump_json()) == job()


@pytest.mark.parametrize(
    "event",
    [
        DONE,
        ProgressEvent(session=1, phase="explore", done=0.5, detail={"loss": 0.25}),
        FailedEvent(session=2, kind="Diverged", message="the loss is nan"),
    ],
)
def test_events_survive_the_way_through_json(event: Event) -> None:
    """The kind of an event is told by its own field."""
    assert EVENTS.validate_json(event.model_dump_json()) == event


def test_a_process_is_kept_for_the_next_job() -> None:
    """Two jobs, two results, one process."""
    with running(OBEDIENT) as trainer:
        trainer.submit(job())
        first = trainer.pid
        assert heard(trainer, 1) == [DONE]
        assert trainer.crashed() is None
        trainer.submit(job())
        assert heard(trainer, 1) == [DONE]
        assert trainer.pid == first


def test_release_ends_an_idle_process_and_the_next_job_starts_another() -> None:
    """A busy process is not released."""
    with running(OBEDIENT) as trainer:
        trainer.submit(job())
        first = trainer.pid
        trainer.release()
        assert trainer.pid == first
        heard(trainer, 1)
        trainer.release()
        assert trainer.pid is None
        assert first is not None
        assert not psutil.pid_exists(first)
        trainer.submit(job())
        assert heard(trainer, 1) == [DONE]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; sys.stdin.readline(); sys.exit(3)", "exit status 3"),
        ("import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 9)", "signal 9"),
        # It closes its end properly and still has not done its job.
        ("import sys; sys.stdin.readline()", "exit status 0"),
        # It is gone before it has read anything.
        ("import sys; sys.stdin.close(); sys.exit(4)", "exit status 4"),
    ],
)
def test_the_end_of_the_process_is_a_crash(script: str, words: str) -> None:
    """Told once, with how it ended; the next job gets a new process."""
    with running(script) as trainer:
        trainer.submit(job())
        first = trainer.pid
        assert crash_of(trainer) == words
        assert trainer.crashed() is None
        trainer.submit(job())
        assert trainer.pid != first


def test_a_result_before_the_end_is_no_crash() -> None:
    """A process that ends right after its result has done its job, however the two race."""
    for _ in range(3):
        with running(f"import sys; sys.stdin.readline(); {SAY}") as trainer:
            trainer.submit(job())
            events: list[Event] = []
            deadline = time.monotonic() + 20
            while not events and time.monotonic() < deadline:
                assert trainer.crashed() is None
                events = trainer.events(0.001)
            assert events == [DONE]


def test_garbage_is_skipped() -> None:
    """Lines that are no events, no JSON or not even UTF-8 do not stop the events after them."""
    script = (
        "import sys; sys.stdin.readline()\n"
        'sys.stdout.buffer.write(b\'hello\\n{"event": "party"}\\n\\xff\\xfe\\x00\\n\')\n'
        f"sys.stdout.buffer.flush()\n{SAY}\nsys.stdin.readline()"
    )
    with running(script) as trainer:
        trainer.submit(job())
        assert heard(trainer, 1) == [DONE]


def test_a_hanging_process_is_killed_at_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ignores the end of its input does not outlive the daemon; stopping twice is harmless."""
    monkeypatch.setattr(trainer_module, "_END_SECONDS", 0.2)
    with running("import time\nwhile True: time.sleep(60)") as trainer:
        trainer.submit(job())
        pid = trainer.pid
        assert trainer.events(0.01) == []
        assert trainer.crashed() is None
        trainer.stop()
        trainer.stop()
        assert pid is not None
        assert not psutil.pid_exists(pid)


def test_the_process_yields_to_serving() -> None:
    """Its niceness is the configured one, and its process id is its own, not that of `nice`."""
    with running(
        f"import os, sys; sys.stdin.readline(); assert os.nice(0) == 7; {SAY}", niceness=7
    ) as trainer:
        trainer.submit(job())
        assert heard(trainer, 1) == [DONE]


def test_the_log_settings_are_passed_on() -> None:
    """The worker's log lines look like the daemon's."""
    script = (
        "import json, os, sys; sys.stdin.readline()\n"
        f"assert json.loads(os.environ['ACCRETE_TRAINER_LOG'])['level'] == 'info'\n{SAY}"
    )
    with running(script) as trainer:
        trainer.submit(job())
        assert heard(trainer, 1) == [DONE]
