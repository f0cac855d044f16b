"""How a session ends: the gate, the promotion, and what is written down and told of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import structlog

from daemon import triggers
from daemon.clock import Clock
from daemon.errors import SwapError
from daemon.events.base import Events
from daemon.events.sessions import ended_facts
from daemon.live import LiveGenerations
from daemon.metrics import Metrics
from daemon.sessions import gate
from daemon.sessions.job import DoneEvent
from daemon.settings import Settings
from daemon.state.base import Decision, SessionOutcome, SessionRecord, State

log = structlog.get_logger(__name__)


class SessionEnds:
    """Judges what the trainer made, and ends sessions; used by one thread.

    Args:
        settings, state, live, metrics, clock: the parts it works with.
        events: what is told of a session's end.
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
        self._settings, self._state, self._live = settings, state, live
        self._metrics, self._clock, self._events = metrics, clock, events

    def fail(self, stream: str, record: SessionRecord, kind: str, reason: str) -> None:
        """End a session that has made nothing."""
        self._end(stream, record, SessionOutcome.FAILED, {"kind": kind, "reason": reason})

    def finish(self, stream: str, record: SessionRecord, made: DoneEvent) -> None:
        """Judge a complete generation: promote it, or reject it with the reason.

        Args:
            stream: the stream.
            record: its session.
            made: what the trainer said of the generation.
        """
        verdict = self._judge(stream, record, made)
        decision = verdict.record(self._clock.now())
        live = self._state.live(stream)
        if (None if live is None else live.digest) != record.parent:
            # An operator rolled back meanwhile; promoting would silently undo that.
            reason = "the live generation changed while the session ran"
            detail = {"reason": reason, triggers.RETRY: True}
            self._end(stream, record, SessionOutcome.REJECTED, detail, decision=decision)
        elif not verdict.passed:
            detail = {"reason": verdict.reason, "digest": made.digest, **verdict.facts}
            self._end(stream, record, SessionOutcome.REJECTED, detail, decision=decision)
        else:
            self._promote(stream, record, made, verdict.facts, decision)

    def _judge(self, stream: str, record: SessionRecord, made: DoneEvent) -> gate.GateResult:
        if record.forgets is not None:
            return gate.judge_forgetting(made.evaluation, made.certificate)
        return gate.judge(self._settings.streams[stream].gate, made.evaluation, made.certificate)

    def _promote(
        self,
        stream: str,
        record: SessionRecord,
        made: DoneEvent,
        facts: Mapping[str, Any],
        decision: Decision,
    ) -> None:
        removed = () if record.forgets is None else self._live.holding(stream, record.forgets)
        commit = partial(
            self._end,
            stream,
            record,
            SessionOutcome.PROMOTED,
            dict(facts),
            generation=made.digest,
            accuracy=made.evaluation["a_t"],
            removed=removed,
            decision=decision,
        )
        try:
            self._live.promote(stream, made.digest, commit, removed=removed)
        except SwapError as error:
            detail = {"kind": "SwapError", "reason": str(error)}
            self._end(stream, record, SessionOutcome.FAILED, detail, decision=decision)

    def _end(
        self,
        stream: str,
        record: SessionRecord,
        outcome: SessionOutcome,
        detail: Mapping[str, Any],
        *,
        generation: str | None = None,
        accuracy: float | None = None,
        removed: tuple[str, ...] = (),
        decision: Decision | None = None,
    ) -> None:
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
        end = self._state.end_session
        if record.forgets is not None:
            again = bool(detail.get(triggers.RETRY, False))
            end = partial(self._state.end_forgetting, again=again, removed=removed)
        end(
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
        promoted = outcome is SessionOutcome.PROMOTED
        self._metrics.sessions.labels(stream, outcome.value).inc()
        self._metrics.session_duration.labels(stream).observe(max(0.0, now - record.started_at))
        if promoted and record.forgets is not None:
            self._metrics.classes_forgotten.labels(stream).inc()
        write = log.info if promoted else log.error
        write(
            "session.ended",
            stream=stream,
            session=record.id,
            outcome=outcome.value,
            forgets=record.forgets,
            **detail,
        )
