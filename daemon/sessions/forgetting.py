"""Operators' wishes to forget a class: accepted or refused at once, carried out as a session of its own.

An accepted wish is durable (the class's state), so a kill at any moment only delays it. The session waits
for the one that runs and goes before any new one; it takes the class out of the live generation, and its
promotion deletes the class's samples and every older generation that holds it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import structlog

from cl_engine.learners.registry import forgetting_methods
from daemon import triggers
from daemon.clock import Clock
from daemon.errors import ForgettingRefused, ServingError, UnknownClass
from daemon.events.base import Events
from daemon.events.sessions import forgotten_fact, started_facts
from daemon.live import LiveGenerations
from daemon.metrics import Metrics
from daemon.settings import Settings
from daemon.state.base import ClassRecord, ClassState, Decision, SessionRecord, State

log = structlog.get_logger(__name__)

FORGET, REMEMBER = "forget", "remember"
POLICY = "operator"


class ForgettingRequest:
    """A wish to forget or to remember a class; once `made` is set there is an `answer` or an `error`.

    Args:
        what: `FORGET` or `REMEMBER`.
        stream: the stream.
        label: of the class.
    """

    def __init__(self, what: str, stream: str, label: str) -> None:
        self.what, self.stream, self.label = what, stream, label
        self.made = threading.Event()
        self.answer: str | None = None
        self.error: ServingError | None = None


class Forgettings:
    """Answers wishes, and begins the sessions that carry them out; used by one thread, notified by any.

    Args:
        settings, state, live, metrics, clock: the parts it works with.
        events: what is told of it.
    """

    def __init__(
        self,
        settings: Settings,
        state: State,
        live: LiveGenerations,
        metrics: Metrics,
        clock: Clock,
        events: Events,
    ) -> None:
        self._state, self._live = state, live
        self._metrics, self._clock, self._events = metrics, clock, events
        self._changed = {stream: threading.Event() for stream in settings.streams}
        for changed in self._changed.values():
            changed.set()

    def notify(self, stream: str) -> None:
        """Say that something has changed, so that the classes are looked at again."""
        self._changed[stream].set()

    def answer(self, request: ForgettingRequest) -> None:
        """Accept or refuse a wish, durably."""
        try:
            if request.what == FORGET:
                request.answer = self._accept(request.stream, request.label)
            else:
                request.answer = self._remember(request.stream, request.label)
        except ServingError as error:
            request.error = error
        request.made.set()

    def begin(self, stream: str) -> SessionRecord | None:
        """Begin the session of the next class to be forgotten; None if there is none, or it must wait."""
        if not self._changed[stream].is_set():
            return None
        self._changed[stream].clear()
        for wanted in self._state.classes(stream):
            if wanted.state is not ClassState.FORGETTING:
                continue
            held = triggers.hold_after_rollback(self._state.live(stream), self._state.generations(stream))
            if held is not None:
                log.warning("forgetting.waits", stream=stream, label=wanted.label, reason=held.reason)
                return None
            if wanted.id not in self._learnt(stream):
                self._erase(stream, wanted)
                continue
            return self._begin(stream, wanted)
        return None

    def _accept(self, stream: str, label: str) -> str:
        wanted = self._find(stream, label)
        if wanted.state is ClassState.FORGOTTEN:
            raise ForgettingRefused(f"class {label!r} of stream {stream!r} is forgotten already")
        if wanted.state is ClassState.FORGETTING:
            return f"class {label!r} is being forgotten already"
        learnt = self._learnt(stream)
        if wanted.id in learnt:
            self._check_learnt(stream, wanted, learnt)
        reason = f"an operator asked to forget class {label!r}"
        facts = {"class_id": wanted.id, "label": label}
        decision = Decision(self._clock.now(), FORGET, POLICY, True, reason, facts)
        self._state.ask_forgetting(stream, wanted.id, decision)
        self._changed[stream].set()
        log.warning("forgetting.accepted", stream=stream, class_id=wanted.id, label=label)
        return f"class {label!r} is being forgotten; its samples are refused from now on"

    def _check_learnt(self, stream: str, wanted: ClassRecord, learnt: Mapping[int, str]) -> None:
        """Refuse what the trainer could not carry out anyway."""
        method = self._live.method(stream)
        if method not in forgetting_methods():
            raise ForgettingRefused(
                f"method {method!r} cannot take a class out of what it has trained: retrain the stream "
                f"without class {wanted.label!r}, or learn it with one of {', '.join(forgetting_methods())}"
            )
        leaving = {c.id for c in self._state.classes(stream) if c.state is ClassState.FORGETTING}
        if not set(learnt) - leaving - {wanted.id}:
            raise ForgettingRefused(
                f"class {wanted.label!r} is the only one that stream {stream!r} would still know: delete "
                "the stream's state instead"
            )

    def _remember(self, stream: str, label: str) -> str:
        wanted = self._find(stream, label)
        if wanted.state is not ClassState.FORGOTTEN:
            raise ForgettingRefused(f"class {label!r} of stream {stream!r} is {wanted.state}, not forgotten")
        reason = f"an operator allows class {label!r} again"
        facts = {"class_id": wanted.id, "label": label}
        decision = Decision(self._clock.now(), REMEMBER, POLICY, True, reason, facts)
        self._state.remember(stream, wanted.id, decision)
        log.warning("forgetting.remembered", stream=stream, class_id=wanted.id, label=label)
        return f"class {label!r} may be learnt again; it has no samples yet"

    def _begin(self, stream: str, wanted: ClassRecord) -> SessionRecord:
        now, classes = self._clock.now(), self._state.classes(stream)
        reason = f"an operator asked to forget class {wanted.label!r}"
        return self._state.begin_forgetting(
            stream,
            wanted.id,
            method=self._live.method(stream),
            at=now,
            events=lambda begun: self._events.of(now, *started_facts(stream, begun, reason, classes)),
        )

    def _erase(self, stream: str, wanted: ClassRecord) -> None:
        """Forget a class that no generation holds: nothing has to be computed."""
        now = self._clock.now()
        reason = f"class {wanted.label!r} was never learnt: its samples are deleted"
        facts = {"class_id": wanted.id, "label": wanted.label}
        decision = Decision(now, FORGET, POLICY, True, reason, facts)
        fact = forgotten_fact(stream, wanted.id, None, self._state.classes(stream))
        self._state.forget_unlearnt(stream, wanted.id, decision, self._events.of(now, fact))
        self._metrics.classes_forgotten.labels(stream).inc()
        log.warning("forgetting.erased", stream=stream, class_id=wanted.id, label=wanted.label)

    def _find(self, stream: str, label: str) -> ClassRecord:
        for record in self._state.classes(stream):
            if record.label == label:
                return record
        raise UnknownClass(f"stream {stream!r} has no class {label[:128]!r}; `accrete classes` lists them")

    def _learnt(self, stream: str) -> Mapping[int, str]:
        return self._live.classes(stream)
