"""Sessions without training: a supervisor on a real state, with named fakes for what is slow."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cl_engine.generation import Generation, GenerationDirectory
from cl_engine.generation.content import ClassEntry
from cl_engine.learners import Servable
from daemon import triggers
from daemon.errors import SwapError
from daemon.events.outbox import OutboxEvents
from daemon.live import LiveGenerations
from daemon.metrics import Metrics
from daemon.runtime import RuntimeFacts
from daemon.serving.slot import LiveSlot
from daemon.sessions.job import DoneEvent, Event, FailedEvent, Job, generations_directory
from daemon.sessions.supervisor import SessionSupervisor
from daemon.settings import Settings
from daemon.sources.base import Place
from daemon.state import SqlState
from daemon.state.base import NewSample, SessionOutcome
from tests.support.ingest import FlakySink
from tests.support.manual_clock import ManualClock
from tests.support.servables import LinearServable

STREAM = "s"
PLACE = Place(STREAM, 0)
# So small that no sample of a test is held out: the counts are those that were stored.
NO_HOLDOUT = 1e-12


class FakeTrainer:
    """Notes its jobs; says what the test tells it to say."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.heard: list[Event] = []
        self.crash: str | None = None
        self.released = 0
        self.stopped = 0

    def submit(self, job: Job) -> None:
        """Note the job."""
        self.jobs.append(job)

    def events(self, timeout: float) -> list[Event]:
        """Return what the test put there."""
        heard, self.heard = self.heard, []
        return heard

    def crashed(self) -> str | None:
        """Tell of a crash once."""
        crash, self.crash = self.crash, None
        return crash

    def release(self) -> None:
        """Count."""
        self.released += 1

    def stop(self) -> None:
        """Count."""
        self.stopped += 1


class FakeRuntime:
    """Builds a small servable for any digest but the broken ones, and notes what it built."""

    facts = RuntimeFacts("fake", "fake-backbone", "cpu", "float32")

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.built: list[str] = []

    def build(self, stream: str, digest: str) -> Servable:
        """Build, or fail."""
        if digest in self.broken:
            raise SwapError(f"generation {digest} cannot be made ready: broken by the test")
        self.built.append(digest)
        servable = LinearServable(0)
        servable.digest = digest
        return servable


def small_generation(number: int, parent: str | None = None, a_t: float = 1.0) -> Generation:
    """Make a generation whose content differs by `number`."""
    return Generation(
        method="ncm",
        backbone="fake-backbone",
        session=number,
        settings={},
        classes=(ClassEntry(0, "a", 0),),
        tensors={"weights": torch.tensor([float(number)])},
        evaluation=evaluated([[a_t]], a_t),
        certificate={"holds": True},
        parent=parent,
    )


def evaluated(matrix: list[list[float | None]], a_t: float | None, forgetting: float = 0.0) -> dict[str, Any]:
    """Return what `evaluate` would, as far as gate and metrics read it."""
    return {
        "accuracy_matrix": matrix,
        "a_t": a_t,
        "a_bar": a_t,
        "forgetting": forgetting,
        "backward_transfer": -forgetting,
        "class_accuracy": {} if a_t is None else {"0": a_t},
        "holdout_samples": 10,
    }


class SessionRig:
    """A supervisor that the test turns by hand, and everything around it.

    Args:
        directory: the state directory; a second rig on the same one is a restart after `close`.
        clock: moves only by hand.
        settings: sections of the stream and of the daemon, over defaults that suit tests.
        events: whether the stream tells of itself.
    """

    def __init__(
        self,
        directory: Path,
        clock: ManualClock | None = None,
        *,
        gate: dict[str, Any] | None = None,
        trainer: dict[str, Any] | None = None,
        stream: dict[str, Any] | None = None,
        events: bool = False,
    ) -> None:
        self.clock = clock or ManualClock()
        self.settings = Settings.model_validate(
            {
                "state_directory": directory,
                "streams": {
                    STREAM: {
                        "trigger": {
                            "min_samples_per_class": 3,
                            "quiet_seconds": 10.0,
                            "max_wait_seconds": 60.0,
                        },
                        "gate": gate or {},
                        **(stream or {}),
                    }
                },
                "trainer": trainer or {},
            }
        )
        self.state = SqlState.open(directory, holdout_fraction={STREAM: NO_HOLDOUT}, clock=self.clock)
        self.metrics = Metrics()
        self.metrics.initialise([STREAM], triggers.POLICIES)
        self.generations = GenerationDirectory(generations_directory(directory))
        self.runtime, self.trainer = FakeRuntime(), FakeTrainer()
        self.slot = LiveSlot(STREAM, 2, self.metrics)
        told = OutboxEvents([STREAM] if events else [])
        self.live = LiveGenerations(
            self.state, self.runtime, {STREAM: self.slot}, self.generations, self.metrics, self.clock, told
        )
        self.letters = FlakySink()
        self.supervisor = SessionSupervisor(
            self.settings,
            self.state,
            self.trainer,
            self.live,
            self.metrics,
            self.clock,
            {STREAM: self.letters},
            told,
        )
        self._stored = self.state.counts(STREAM).stored

    def close(self) -> None:
        """Give the state directory back."""
        self.state.close()

    def store(self, label: str, count: int) -> None:
        """Let new samples of a class arrive now."""
        new = [
            NewSample(f"{label}-{n}", label, "image/png", b"x", PLACE, n, 0, self.clock.now())
            for n in range(self._stored, self._stored + count)
        ]
        self._stored += count
        self.state.store(STREAM, new, [], {PLACE: self._stored})
        self.supervisor.notify(STREAM)

    def ticks(self, count: int = 1) -> None:
        """Turn the supervisor."""
        for _ in range(count):
            self.clock.wait(threading.Event(), self.supervisor.turn())

    def begin(self, *labels: str) -> None:
        """Let enough samples of new classes arrive, wait for quiet and start their session."""
        jobs = len(self.trainer.jobs)
        for label in labels:
            self.store(label, 3)
        self.clock.advance(10.0)
        self.ticks()
        assert len(self.trainer.jobs) == jobs + 1

    def finish(
        self,
        number: int,
        matrix: list[list[float | None]] | None = None,
        a_t: float = 1.0,
        forgetting: float = 0.0,
    ) -> str:
        """Let the trainer complete a generation; return its digest."""
        job = self.trainer.jobs[-1]
        digest = self.generations.write(small_generation(number, job.parent, a_t))
        self.trainer.heard.append(
            DoneEvent(
                session=job.session,
                digest=digest,
                evaluation=evaluated(matrix or [[a_t]], a_t, forgetting),
                certificate={"holds": True},
            )
        )
        self.ticks()
        return digest

    def fail(self, kind: str, message: str) -> None:
        """Run a session of a new class that fails in training."""
        self.begin(f"class-{len(self.trainer.jobs)}")
        self.trainer.heard.append(
            FailedEvent(session=self.trainer.jobs[-1].session, kind=kind, message=message)
        )
        self.ticks()

    def promote(self, number: int, *labels: str) -> str:
        """Run a whole session."""
        self.begin(*labels)
        digest = self.finish(number)
        live = self.state.live(STREAM)
        assert live is not None
        assert live.digest == digest
        return digest

    def outcomes(self) -> Sequence[SessionOutcome]:
        """Return how the sessions stand, by id."""
        return [session.outcome for session in self.state.sessions(STREAM)]

    def sample(self, name: str, **labels: str) -> float:
        """Return a metric's value."""
        value = self.metrics.registry.get_sample_value(name, {"stream": STREAM, **labels})
        assert value is not None
        return value
