"""One thread that lets sessions start, follows the one that runs, and lets it end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from cl_engine.checkpoint import remove_checkpoint
from daemon.clock import Clock
from daemon.errors import SourceUnavailable
from daemon.events.base import Events, NoEvents
from daemon.live import LiveGenerations
from daemon.metrics import Metrics
from daemon.owner_thread import OwnerThread
from daemon.sessions.ends import SessionEnds
from daemon.sessions.forgetting import ForgettingRequest, Forgettings
from daemon.sessions.job import (
    DoneEvent,
    FailedEvent,
    Job,
    ProgressEvent,
    UnreadableEvent,
    checkpoint_directory,
    checkpoints_directory,
)
from daemon.sessions.starts import SessionStarts
from daemon.sessions.trainer import Trainer
from daemon.sessions.withdrawals import Withdrawals
from daemon.settings import Settings
from daemon.sources.base import Sink
from daemon.state.base import SessionOutcome, SessionRecord, State
from daemon.triggers import TriggerDecision

log = structlog.get_logger(__name__)

# How often the triggers look; a session takes seconds at the least.
TICK_SECONDS = 0.25
# Between two attempts to reach the dead-letter topic.
LETTERS_SECONDS = 1.0


@dataclass(frozen=True)
class Running:
    """The session that the trainer works on."""

    stream: str
    record: SessionRecord


class FlushRequest:
    """An operator's flush; `decision` is there once `made` is set."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.made = threading.Event()
        self.decision: TriggerDecision | None = None


class SessionSupervisor(OwnerThread):
    """Owner of the thread that runs sessions, one at a time over all streams.

    What was interrupted goes first, then classes to be forgotten, then flushes, then the triggers.

    Args:
        settings: of the daemon.
        state, trainer, live, metrics, clock: the parts it works with.
        sinks: of each stream's log, for samples that a session cannot decode.
        events: what is told of sessions.
    """

    # Whatever goes wrong here is no passing trouble: the state is lost, or ours no more.
    passing = ()

    def __init__(
        self,
        settings: Settings,
        state: State,
        trainer: Trainer,
        live: LiveGenerations,
        metrics: Metrics,
        clock: Clock,
        sinks: Mapping[str, Sink],
        events: Events | None = None,
    ) -> None:
        super().__init__("sessions", clock)
        events = events or NoEvents()
        self._settings, self._state, self._trainer = settings, state, trainer
        self._live, self._metrics = live, metrics
        self._starts = SessionStarts(settings, state, metrics, clock, events)
        self._ends = SessionEnds(settings, state, live, metrics, clock, events)
        self._forgettings = Forgettings(settings, state, live, metrics, clock, events)
        self._withdrawals = Withdrawals(state, sinks, metrics)
        self._unreadable: UnreadableEvent | None = None
        self._flushes: deque[FlushRequest] = deque()
        self._wishes: deque[ForgettingRequest] = deque()
        self._interrupted: deque[Running] | None = None
        self._crashes = 0
        self._running: Running | None = None
        self._progress: ProgressEvent | None = None
        self._heard_at = clock.monotonic()
        self._idle_since: float | None = None

    # -- from other threads

    def notify(self, stream: str) -> None:
        """Say that samples were stored or the live pointer moved, so that the trigger looks again."""
        self._starts.notify(stream)
        self._forgettings.notify(stream)

    def flush(self, stream: str, timeout: float) -> TriggerDecision | None:
        """Ask for a session now; None if another one runs for longer than `timeout` seconds.

        The request stays: a session starts as soon as the other one has ended.
        """
        request = FlushRequest(stream)
        self._flushes.append(request)
        self._clock.wait(request.made, timeout)
        return request.decision

    def wish(self, request: ForgettingRequest, timeout: float) -> str | None:
        """Ask to forget or to remember a class; None if there is no answer within `timeout` seconds yet.

        Raises:
            UnknownClass: the stream has no class of that label.
            ForgettingRefused: it cannot be done as things stand.
        """
        self._wishes.append(request)
        self._clock.wait(request.made, timeout)
        if request.error is not None:
            raise request.error
        return request.answer

    def running(self, stream: str) -> tuple[SessionRecord, ProgressEvent | None] | None:
        """Return the stream's running session and how far it is."""
        current, progress = self._running, self._progress
        if current is None or current.stream != stream:
            return None
        return current.record, progress

    # -- the thread

    def work(self) -> float:
        """Follow the running session, or look whether one should start."""
        if self._interrupted is None:
            self._interrupted = self._find_interrupted()
            self._tidy()
        while self._wishes:
            request = self._wishes.popleft()
            self._forgettings.answer(request)
            self._starts.notify(request.stream)
        if self._running is not None and self._unreadable is not None:
            return self._withdraw(self._running, self._unreadable)
        if self._running is not None:
            self._follow(self._running)
            return 0.0
        started = self._next(self._interrupted)
        if started is None:
            self._rest()
            return TICK_SECONDS
        self._submit(started)
        return 0.0

    def release(self) -> None:
        """End the trainer; a running session stays at its last checkpoint."""
        self._trainer.stop()

    def _find_interrupted(self) -> deque[Running]:
        """Return the sessions that were running when the daemon was last stopped or killed."""
        return deque(
            Running(stream, record)
            for stream in self._settings.streams
            for record in self._state.sessions(stream)
            if record.outcome is SessionOutcome.RUNNING
        )

    def _rest(self) -> None:
        now = self._clock.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= self._settings.trainer.idle_seconds:
            self._trainer.release()

    def _tidy(self) -> None:
        """Delete generations that are out of reach and ended sessions' checkpoints; no trainer works now."""
        for stream, settings in self._settings.streams.items():
            self._live.prune(stream, settings.keep_generations)
        self._live.sweep()
        directory = self._settings.state_directory
        left = set(checkpoints_directory(directory).glob("*"))
        for stream in self._settings.streams if left else ():
            for record in self._state.sessions(stream):
                checkpoint = checkpoint_directory(directory, stream, record.id)
                if checkpoint in left and record.outcome is not SessionOutcome.RUNNING:
                    remove_checkpoint(checkpoint)

    # -- starting

    def _next(self, interrupted: deque[Running]) -> Running | None:
        """Return the session to run now, if any."""
        if interrupted:
            return self._restarted(interrupted.popleft(), "the daemon was restarted")
        for stream in self._settings.streams:
            record = self._forgettings.begin(stream)
            if record is not None:
                return Running(stream, record)
        if self._flushes:
            request = self._flushes.popleft()
            request.decision, record = self._starts.flush(request.stream)
            request.made.set()
            return None if record is None else Running(request.stream, record)
        for stream in self._settings.streams:
            record = self._starts.look(stream)
            if record is not None:
                return Running(stream, record)
        return None

    def _restarted(self, running: Running, why: str) -> Running:
        record = self._state.restart_session(running.stream, running.record.id)
        self._metrics.session_restarts.labels(running.stream).inc()
        log.warning(
            "session.resumed", stream=running.stream, session=record.id, attempt=record.attempt, why=why
        )
        return Running(running.stream, record)

    def _submit(self, running: Running) -> None:
        settings, stream, record = self._settings, running.stream, running.record
        log.info(
            "session.started",
            stream=stream,
            session=record.id,
            classes=record.new_classes,
            forgets=record.forgets,
            method=record.method,
            attempt=record.attempt,
        )
        self._running, self._progress, self._idle_since = running, None, None
        self._heard_at = self._clock.monotonic()
        self._metrics.session_running.labels(stream).set(1)
        self._trainer.submit(
            Job(
                stream=stream,
                session=record.id,
                attempt=record.attempt,
                new_classes=record.new_classes,
                parent=record.parent,
                method=record.method,
                options=dict(record.settings),
                seed=record.seed,
                state_directory=settings.state_directory,
                holdout_limit_per_class=settings.streams[stream].holdout_limit_per_class,
                limits=settings.limits,
                forgets=record.forgets,
                backbone=settings.backbone.model_copy(update={"threads": settings.trainer.threads}),
            )
        )

    # -- following

    def _follow(self, running: Running) -> None:
        for event in self._trainer.events(TICK_SECONDS):
            if event.session != running.record.id:
                continue
            self._heard_at = self._clock.monotonic()
            if isinstance(event, ProgressEvent):
                self._progress = event
                self._metrics.session_progress.labels(running.stream).set(event.done)
            elif isinstance(event, DoneEvent):
                self._ends.finish(running.stream, running.record, event)
                self._ended(running.stream)
                return
            elif isinstance(event, UnreadableEvent):
                self._unreadable = event
                return
            else:
                assert isinstance(event, FailedEvent)
                self._ends.fail(running.stream, running.record, event.kind, event.message)
                self._ended(running.stream)
                return
        crash = self._trainer.crashed()
        if crash is not None:
            self._after_crash(running, crash)
        elif self._clock.monotonic() - self._heard_at >= self._settings.trainer.stall_seconds:
            self._trainer.stop()
            self._metrics.trainer_stalls.labels(running.stream).inc()
            silence = f"no progress for {self._settings.trainer.stall_seconds:g} s"
            self._after_crash(running, silence)

    def _withdraw(self, running: Running, found: UnreadableEvent) -> float:
        """Take what cannot be decoded out of the store and run the session again without it."""
        try:
            self._withdrawals.withdraw(running.stream, found.samples)
        except SourceUnavailable as error:
            log.warning("session.waits_for_dead_letters", stream=running.stream, error=str(error))
            return LETTERS_SECONDS
        self._unreadable = None
        self.notify(running.stream)
        self._submit(self._restarted(running, f"{len(found.samples)} samples could not be decoded"))
        return 0.0

    def _after_crash(self, running: Running, how: str) -> None:
        self._crashes += 1
        log.error("trainer.crashed", stream=running.stream, session=running.record.id, how=how)
        if self._crashes >= self._settings.trainer.max_attempts:
            reason = f"the trainer process crashed {self._crashes} times, at last with {how}"
            self._ends.fail(running.stream, running.record, "TrainerCrashed", reason)
            self._ended(running.stream)
        else:
            self._submit(self._restarted(running, f"the trainer process ended with {how}"))

    def _ended(self, stream: str) -> None:
        self._running, self._progress, self._idle_since = None, None, None
        self._crashes = 0
        self._metrics.session_running.labels(stream).set(0)
        self._metrics.session_progress.labels(stream).set(0)
        self._tidy()
        self.notify(stream)
