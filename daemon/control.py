"""What operators ask of a running daemon, answered from its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from daemon.clock import Clock
from daemon.errors import BadRequest, UnknownStream
from daemon.intake import Intake
from daemon.live import LiveGenerations
from daemon.runtime import Runtime
from daemon.serving.slot import LiveSlot
from daemon.sessions.forgetting import FORGET, REMEMBER, ForgettingRequest
from daemon.sessions.supervisor import SessionSupervisor
from daemon.settings import KafkaSource, Settings
from daemon.sources import labelled_topic
from daemon.sources.base import Message
from daemon.sources.log import EmbeddedLog
from daemon.state.base import ClassRecord, ClassState, Decision, GenerationRecord, SessionRecord, State

# Longer than a session's start takes; a client that flushes during a session gets its answer in time.
FLUSH_SECONDS = 5.0
# Longer than a generation takes to be loaded and warmed up, which is all that delays the answer.
WISH_SECONDS = 20.0


class DaemonControl:
    """Implements `daemon.serving.control.Control`; see there for what each call means."""

    def __init__(
        self,
        settings: Settings,
        state: State,
        runtime: Runtime,
        supervisor: SessionSupervisor,
        live: LiveGenerations,
        intakes: Mapping[str, Intake],
        slots: Mapping[str, LiveSlot],
        topics: EmbeddedLog,
        clock: Clock,
    ) -> None:
        self._settings, self._state, self._runtime = settings, state, runtime
        self._supervisor, self._live = supervisor, live
        self._intakes, self._slots, self._topics, self._clock = intakes, slots, topics, clock
        self._paused: set[str] = set()

    def status(self, stream: str) -> Mapping[str, Any]:
        """Summarise the stream."""
        settings = self._stream(stream)
        counts, live = self._state.counts(stream), self._state.live(stream)
        classes = self._state.classes(stream)
        sessions = self._state.sessions(stream)
        running = self._supervisor.running(stream)
        intake = self._intakes[stream]
        return {
            "stream": stream,
            "source": {"kind": settings.source.kind, "topic": labelled_topic(stream, settings.source)},
            "method": settings.learner.method,
            "runtime": asdict(self._runtime.facts),
            "intake": {
                "paused": stream in self._paused,
                "failed": None if intake.failed is None else str(intake.failed),
                "samples": asdict(counts),
            },
            "buffers": [
                {"class_id": b.class_id, "label": b.label, "train": b.train, "holdout": b.holdout}
                for b in self._state.buffers(stream)
            ],
            "classes": {s.value: sum(c.state is s for c in classes) for s in ClassState},
            "session": None
            if running is None
            else {
                "id": running[0].id,
                "attempt": running[0].attempt,
                "seconds": round(self._clock.now() - running[0].started_at, 3),
                "phase": None if running[1] is None else running[1].phase,
                "done": 0.0 if running[1] is None else round(running[1].done, 4),
            },
            "sessions": len(sessions),
            "live": None
            if live is None
            else {
                "number": live.number,
                "digest": live.digest,
                "accuracy": live.accuracy,
                "session": live.session,
            },
            "resident": [ref.number for ref in self._slots[stream].residents()],
        }

    def sessions(self, stream: str) -> Sequence[SessionRecord]:
        """List the sessions by id."""
        self._stream(stream)
        return self._state.sessions(stream)

    def classes(self, stream: str) -> Sequence[ClassRecord]:
        """List the class registry by id."""
        self._stream(stream)
        return self._state.classes(stream)

    def generations(self, stream: str) -> Sequence[GenerationRecord]:
        """List the generations by number."""
        self._stream(stream)
        return self._state.generations(stream)

    def decisions(self, stream: str, limit: int) -> Sequence[Decision]:
        """List the latest decisions, newest first."""
        self._stream(stream)
        return self._state.decisions(stream, limit)

    def flush(self, stream: str) -> Mapping[str, Any]:
        """Start a session with what is there."""
        self._stream(stream)
        decision = self._supervisor.flush(stream, FLUSH_SECONDS)
        if decision is None:
            return {"started": False, "queued": True, "reason": "a session is running; this one is next"}
        return {"started": decision.fired, "queued": False, "reason": decision.reason}

    def pause(self, stream: str) -> Mapping[str, Any]:
        """Stop taking records in."""
        self._stream(stream)
        self._intakes[stream].pause()
        self._paused.add(stream)
        return {"paused": True}

    def resume(self, stream: str) -> Mapping[str, Any]:
        """Take records in again."""
        self._stream(stream)
        self._intakes[stream].resume()
        self._paused.discard(stream)
        return {"paused": False}

    def rollback(self, stream: str, generation: str | None) -> Mapping[str, Any]:
        """Make an earlier (or again a later) generation the live one."""
        self._stream(stream)
        record = self._live.rollback(stream, generation)
        self._supervisor.notify(stream)
        return {"generation": record.digest, "generation_number": record.number}

    def forget(self, stream: str, label: str) -> Mapping[str, Any]:
        """Have a class forgotten."""
        return self._wish(FORGET, stream, label)

    def remember(self, stream: str, label: str) -> Mapping[str, Any]:
        """Let a forgotten class be learnt again."""
        return self._wish(REMEMBER, stream, label)

    def ingest(self, stream: str, message: Message) -> Mapping[str, Any]:
        """Append a message to the stream's embedded topic."""
        source = self._stream(stream).source
        if isinstance(source, KafkaSource):
            raise BadRequest(
                f"stream {stream!r} reads from Kafka: produce to its topic {source.topic!r} instead"
            )
        offsets = self._topics.append(labelled_topic(stream, source), [message])
        return {"topic": labelled_topic(stream, source), "partition": 0, "offset": offsets[0]}

    def _wish(self, what: str, stream: str, label: str) -> Mapping[str, Any]:
        self._stream(stream)
        answer = self._supervisor.wish(ForgettingRequest(what, stream, label), WISH_SECONDS)
        if answer is None:
            return {"accepted": False, "queued": True, "reason": "a generation is loading; this is next"}
        return {"accepted": True, "queued": False, "reason": answer}

    def _stream(self, stream: str) -> Any:
        try:
            return self._settings.streams[stream]
        except KeyError:
            raise UnknownStream(
                f"no stream {stream[:64]!r} is configured: "
                f"use one of {', '.join(sorted(self._settings.streams))}"
            ) from None
