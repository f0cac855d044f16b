"""One thread that decides when sessions start, follows them, and puts what they make live."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from daemon import triggers
from daemon.clock import Clock
from daemon.errors import SwapError
from daemon.events.base import Events, NoEvents
from daemon.events.sessions import ended_facts, started_facts
from daemon.live import LiveGenerations
from daemon.metrics import Metrics
from daemon.sessions import gate
from daemon.sessions.job import DoneEvent, FailedEvent, Job, ProgressEvent
from daemon.sessions.trainer import Trainer
from daemon.settings import Settings
from daemon.state.base import (
    ClassBuffer,
    ClassState,
    Decision,
    SessionOutcome,
    SessionRecord,
    State,
)
from daemon.triggers import TriggerDecision

log = structlog.get_logger(__name__)

# How often the triggers look; a session takes seconds at the least.
TICK_SECONDS = 0.25


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


class SessionSupervisor:
    """Owner of the thread that runs sessions, one at a time over all streams.

    Attributes:
        heartbeat: clock's monotonic seconds of the last turn.
        failed: what ended the thread, None while it is well.

    Args:
        settings: of the daemon.
        state, trainer, live, metrics, clock: the parts it works with.
        events: what is told of sessions.
    """

    def __init__(
        self,
        settings: Settings,
        state: State,
        trainer: Trainer,
        live: LiveGenerations,
        metrics: Metrics,
        clock: Clock,
        events: Events | None = None,
    ) -> None:
        self._settings, self._state, self._trainer = settings, state, trainer
        self._events = events or NoEvents()
        self._live, self._metrics, self._clock = live, metrics, clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sessions", daemon=True)
        self._flushes: deque[FlushRequest] = deque()
        self._changed = {stream: threading.Event() for stream in settings.streams}
        self._buffers: dict[str, list[ClassBuffer]] = {}
        self._last_reason: dict[str, str] = {}
        self._interrupted: deque[Running] = deque()
        self._crashes = 0
        self._running: Running | None = None
        self._progress: ProgressEvent | None = None
        self._idle_since: float | None = None
        self.heartbeat = clock.monotonic()
        self.failed: BaseException | None = None
        for changed in self._changed.values():
            changed.set()

    # -- from other threads

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; a running session stays at its last checkpoint."""
        self._stopping.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread to end; return whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def notify(self, stream: str) -> None:
        """Say that samples were stored or the live pointer moved, so that the trigger looks again."""
        self._changed[stream].set()

    def flush(self, stream: str, timeout: float) -> TriggerDecision | None:
        """Ask for a session now; None if another one runs for longer than `timeout` seconds.

        The request stays: a session starts as soon as the other one has ended.
        """
        request = FlushRequest(stream)
        self._flushes.append(request)
        self._clock.wait(request.made, timeout)
        return request.decision

    def running(self, stream: str) -> tuple[SessionRecord, ProgressEvent | None] | None:
        """Return the stream's running session and how far it is."""
        current, progress = self._running, self._progress
        if current is None or current.stream != stream:
            return None
        return current.record, progress

    # -- the thread

    def _run(self) -> None:
        try:
            self.find_interrupted()
            while not self._stopping.is_set():
                self.tick()
        except Exception as error:
            self.failed = error
            log.exception("sessions.failed")
        finally:
            self._trainer.stop()

    def find_interrupted(self) -> None:
        """Queue the sessions that were running when the daemon was last stopped or killed."""
        for stream in self._settings.streams:
            for record in self._state.sessions(stream):
                if record.outcome is SessionOutcome.RUNNING:
                    self._interrupted.append(Running(stream, record))

    def tick(self) -> None:
        """Follow the running session, or look whether one should start; takes about `TICK_SECONDS`."""
        self.heartbeat = self._clock.monotonic()
        if self._running is not None:
            self._follow(self._running)
            return
        self._look()
        if self._running is None:
            self._rest()

    def _rest(self) -> None:
        now = self._clock.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= self._settings.trainer.idle_seconds:
            self._trainer.release()
        self._clock.wait(self._stopping, TICK_SECONDS)

    # -- starting

    def _look(self) -> None:
        if self._interrupted:
            waiting = self._interrupted.popleft()
            self._restart(waiting, "the daemon was restarted")
            return
        if self._flushes:
            request = self._flushes.popleft()
            request.decision = self._decide_flush(request.stream)
            self._decided(request.stream, request.decision)
            request.made.set()
            return
        for stream in self._settings.streams:
            decision = self._decide_new_classes(stream)
            # The seconds in the facts change every tick; only a new reason is worth an entry.
            if decision.fired or decision.reason != self._last_reason.get(stream):
                self._last_reason[stream] = decision.reason
                self._decided(stream, decision)
            if self._running is not None:
                return

    def _decide_new_classes(self, stream: str) -> TriggerDecision:
        buffers = self._fresh_buffers(stream)
        pending = [b for b in buffers if b.state is ClassState.PENDING]
        held = (
            triggers.hold_after_rollback(self._state.live(stream), self._state.generations(stream))
            if pending
            else None
        )
        if held is not None:
            return held
        free = triggers.without_unsuccessful(pending, self._state.sessions(stream)) if pending else []
        if pending and not free:
            return TriggerDecision(
                triggers.NEW_CLASSES,
                False,
                "the last session of these classes did not succeed: send more samples, or flush",
                tuple(b.class_id for b in pending),
            )
        return triggers.decide_new_classes(self._settings.streams[stream].trigger, free, self._clock.now())

    def _decide_flush(self, stream: str) -> TriggerDecision:
        self._changed[stream].set()
        held = triggers.hold_after_rollback(self._state.live(stream), self._state.generations(stream))
        if held is not None:
            return TriggerDecision(triggers.FLUSH, False, held.reason)
        return triggers.decide_flush(self._fresh_buffers(stream))

    def _fresh_buffers(self, stream: str) -> list[ClassBuffer]:
        """Return what is not learnt yet; the store is only asked after something has changed."""
        if self._changed[stream].is_set():
            self._changed[stream].clear()
            self._buffers[stream] = list(self._state.buffers(stream))
            self._show_buffers(stream)
        return self._buffers[stream]

    def _show_buffers(self, stream: str) -> None:
        buffers = self._buffers[stream]
        ready = triggers.ready_classes(self._settings.streams[stream].trigger, buffers)
        enough = sum(b.train for b in ready)
        gauge = self._metrics.buffered_samples
        gauge.labels(stream, "ready").set(enough)
        gauge.labels(stream, "waiting").set(sum(b.train for b in buffers) - enough)
        states = [record.state for record in self._state.classes(stream)]
        for state in ClassState:
            self._metrics.classes.labels(stream, state.value).set(states.count(state))

    def _decided(self, stream: str, decision: TriggerDecision) -> None:
        record = decision.record(self._clock.now())
        fired = "true" if decision.fired else "false"
        self._metrics.trigger_decisions.labels(stream, decision.policy, fired).inc()
        log.info(
            "trigger.decided",
            stream=stream,
            policy=decision.policy,
            fired=decision.fired,
            reason=decision.reason,
            classes=decision.classes,
        )
        if not decision.fired:
            self._state.record_decision(stream, record)
            return
        learner = self._settings.streams[stream].learner
        classes, now = self._state.classes(stream), self._clock.now()
        session = self._state.begin_session(
            stream,
            new_classes=decision.classes,
            method=learner.method,
            settings=learner.options,
            seed=learner.seed,
            decision=record,
            at=now,
            events=lambda begun: self._events.of(
                now, *started_facts(stream, begun, decision.reason, classes)
            ),
        )
        self._crashes = 0
        self._submit(stream, session)

    def _restart(self, running: Running, why: str) -> None:
        record = self._state.restart_session(running.stream, running.record.id)
        self._metrics.session_restarts.labels(running.stream).inc()
        log.warning(
            "session.resumed", stream=running.stream, session=record.id, attempt=record.attempt, why=why
        )
        self._submit(running.stream, record)

    def _submit(self, stream: str, record: SessionRecord) -> None:
        settings = self._settings
        log.info(
            "session.started",
            stream=stream,
            session=record.id,
            classes=record.new_classes,
            method=record.method,
            attempt=record.attempt,
        )
        self._running, self._progress, self._idle_since = Running(stream, record), None, None
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
                max_image_pixels=settings.limits.max_image_pixels,
                backbone=settings.backbone.model_copy(update={"threads": settings.trainer.threads}),
            )
        )

    # -- following

    def _follow(self, running: Running) -> None:
        for event in self._trainer.events(TICK_SECONDS):
            if event.session != running.record.id:
                continue
            if isinstance(event, ProgressEvent):
                self._progress = event
                self._metrics.session_progress.labels(running.stream).set(event.done)
            elif isinstance(event, DoneEvent):
                self._finish(running, event)
                return
            else:
                assert isinstance(event, FailedEvent)
                self._end(running, SessionOutcome.FAILED, {"kind": event.kind, "reason": event.message})
                return
        crash = self._trainer.crashed()
        if crash is not None:
            self._after_crash(running, crash)

    def _after_crash(self, running: Running, how: str) -> None:
        self._crashes += 1
        log.error("trainer.crashed", stream=running.stream, session=running.record.id, how=how)
        if self._crashes >= self._settings.trainer.max_attempts:
            reason = f"the trainer process crashed {self._crashes} times, at last with {how}"
            self._end(running, SessionOutcome.FAILED, {"kind": "TrainerCrashed", "reason": reason})
        else:
            self._restart(running, f"the trainer process ended with {how}")

    def _finish(self, running: Running, event: DoneEvent) -> None:
        stream = running.stream
        verdict = gate.judge(self._settings.streams[stream].gate, event.evaluation, event.certificate)
        live = self._state.live(stream)
        if (None if live is None else live.digest) != running.record.parent:
            # An operator rolled back meanwhile; promoting would silently undo that.
            reason = "the live generation changed while the session ran"
            detail = {"reason": reason, triggers.RETRY: True}
            self._end(running, SessionOutcome.REJECTED, detail, decision=verdict.record(self._clock.now()))
            return
        decision = verdict.record(self._clock.now())
        accuracy = event.evaluation["a_t"]
        if not verdict.passed:
            self._end(
                running,
                SessionOutcome.REJECTED,
                {"reason": verdict.reason, "digest": event.digest, **verdict.facts},
                decision=decision,
            )
            return
        try:
            self._live.promote(
                stream,
                event.digest,
                lambda: self._end(
                    running,
                    SessionOutcome.PROMOTED,
                    dict(verdict.facts),
                    generation=event.digest,
                    accuracy=accuracy,
                    decision=decision,
                ),
            )
        except SwapError as error:
            failure = {"kind": "SwapError", "reason": str(error)}
            self._end(running, SessionOutcome.FAILED, failure, decision=decision)

    def _end(
        self,
        running: Running,
        outcome: SessionOutcome,
        detail: Mapping[str, object],
        *,
        generation: str | None = None,
        accuracy: float | None = None,
        decision: Decision | None = None,
    ) -> None:
        stream, record = running.stream, running.record
        now = self._clock.now()
        facts = ended_facts(
            stream,
            record,
            outcome,
            reason=str(detail.get("reason", "")),
            generation=generation,
            accuracy=accuracy,
            verdict=decision,
            classes=self._state.classes(stream),
        )
        self._state.end_session(
            stream,
            record.id,
            outcome=outcome,
            at=now,
            detail=detail,
            generation=generation,
            accuracy=accuracy,
            decision=decision,
            events=self._events.of(now, *facts),
        )
        self._running, self._progress, self._idle_since = None, None, None
        self._crashes = 0
        self._changed[stream].set()
        self._metrics.sessions.labels(stream, outcome.value).inc()
        self._metrics.session_duration.labels(stream).observe(max(0.0, now - record.started_at))
        self._metrics.session_running.labels(stream).set(0)
        self._metrics.session_progress.labels(stream).set(0)
        write = log.info if outcome is SessionOutcome.PROMOTED else log.error
        write("session.ended", stream=stream, session=record.id, outcome=outcome.value, **detail)
