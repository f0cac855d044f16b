"""When a session of a stream starts: the triggers' decisions, recorded, and what they begin."""

from __future__ import annotations

import threading

import structlog

from daemon import triggers
from daemon.clock import Clock
from daemon.events.base import Events
from daemon.events.sessions import started_facts
from daemon.metrics import Metrics
from daemon.settings import Settings
from daemon.state.base import ClassBuffer, ClassState, SessionRecord, State
from daemon.triggers import TriggerDecision

log = structlog.get_logger(__name__)


class SessionStarts:
    """Looks at what is buffered and begins sessions in the state; used by one thread, notified by any.

    Args:
        settings, state, metrics, clock: the parts it works with.
        events: what is told of a session's start.
    """

    def __init__(
        self, settings: Settings, state: State, metrics: Metrics, clock: Clock, events: Events
    ) -> None:
        self._settings, self._state = settings, state
        self._metrics, self._clock, self._events = metrics, clock, events
        self._changed = {stream: threading.Event() for stream in settings.streams}
        self._buffers: dict[str, list[ClassBuffer]] = {}
        self._last_reason: dict[str, str] = {}
        for changed in self._changed.values():
            changed.set()

    def notify(self, stream: str) -> None:
        """Say that something has changed, so that the store is asked again."""
        self._changed[stream].set()

    def look(self, stream: str) -> SessionRecord | None:
        """Begin a session of new classes if it is time for one."""
        decision = self._decide_new_classes(stream)
        # The seconds in the facts change every turn; only a new reason is worth an entry.
        if not decision.fired and decision.reason == self._last_reason.get(stream):
            return None
        self._last_reason[stream] = decision.reason
        return self._decided(stream, decision)

    def flush(self, stream: str) -> tuple[TriggerDecision, SessionRecord | None]:
        """Begin a session with what is there, if there is anything to learn; return why or why not."""
        self._changed[stream].set()
        held = triggers.hold_after_rollback(self._state.live(stream), self._state.generations(stream))
        decision = (
            triggers.decide_flush(self._fresh_buffers(stream))
            if held is None
            else TriggerDecision(triggers.FLUSH, False, held.reason)
        )
        return decision, self._decided(stream, decision)

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

    def _decided(self, stream: str, decision: TriggerDecision) -> SessionRecord | None:
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
            return None
        learner = self._settings.streams[stream].learner
        classes, now = self._state.classes(stream), self._clock.now()
        return self._state.begin_session(
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
