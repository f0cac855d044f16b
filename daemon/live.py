"""Which generation answers: restore it at the start, promote a new one, go back to an old one.

The durable pointer moves in one transaction before the pointer in memory; a kill between the two is
mended by the next start, which restores what the state says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from cl_engine.errors import EngineError
from cl_engine.generation import GenerationDirectory
from daemon.clock import Clock
from daemon.errors import SwapError, UnknownGeneration
from daemon.events.base import Events, NoEvents
from daemon.messages.events import GenerationRolledBack
from daemon.metrics import Metrics
from daemon.runtime import Runtime
from daemon.serving.slot import LiveSlot
from daemon.state.base import Decision, GenerationRecord, State

log = structlog.get_logger(__name__)

KIND = "rollback"
POLICY = "operator"


class LiveGenerations:
    """Moves the live pointers; any thread may call, one move at a time.

    Args:
        state, runtime, metrics, clock: the parts it works with.
        slots: where requests find their generation, by stream.
        directory: the generations on disk.
        events: what is told of rollbacks; a promotion is told of with its session's end.
    """

    def __init__(
        self,
        state: State,
        runtime: Runtime,
        slots: Mapping[str, LiveSlot],
        directory: GenerationDirectory,
        metrics: Metrics,
        clock: Clock,
        events: Events | None = None,
    ) -> None:
        self._state, self._runtime, self._slots = state, runtime, slots
        self._events = events or NoEvents()
        self._directory, self._metrics, self._clock = directory, metrics, clock
        self._lock = threading.Lock()
        self._shown: dict[str, tuple[str, ...]] = {}

    def restore(self, stream: str) -> GenerationRecord | None:
        """Serve what was live when the daemon last ran; None before the first promotion.

        Raises:
            SwapError: it cannot be loaded; the state names it, so answering without it would be wrong.
        """
        record = self._state.live(stream)
        if record is not None:
            with self._lock:
                self._slots[stream].publish(self._runtime.build(stream, record.digest), record.number)
                self._show(stream, record)
            log.info("generation.restored", stream=stream, generation=record.number, digest=record.digest)
        return record

    def promote(
        self, stream: str, digest: str, commit: Callable[[], None], removed: Sequence[str] = ()
    ) -> GenerationRecord:
        """Make a new generation live.

        Args:
            stream: the stream.
            digest: complete on disk.
            commit: ends the session and moves the durable pointer, in one transaction; called once the
                generation is built and warm.
            removed: digests that leave memory now, and the stream's list with `commit`.

        Raises:
            SwapError: it could not be made ready; nothing has changed.
        """
        with self._lock:
            try:
                ready = self._runtime.build(stream, digest)
            except SwapError:
                self._metrics.swaps.labels(stream, "failed").inc()
                raise
            commit()
            record = self._state.live(stream)
            assert record is not None
            assert record.digest == digest
            report = self._slots[stream].publish(ready, record.number)
            self._slots[stream].discard(removed)
            self._metrics.swaps.labels(stream, "promoted").inc()
            self._show(stream, record)
        log.info(
            "generation.published",
            stream=stream,
            generation=record.number,
            digest=digest,
            pause_seconds=report.pause_seconds,
        )
        return record

    def rollback(self, stream: str, generation: str | None) -> GenerationRecord:
        """Move the live pointer to another generation the stream has had.

        Args:
            stream: the stream.
            generation: its number or digest; None for the one before the live one.

        Raises:
            UnknownGeneration: there is no such generation.
            SwapError: it cannot be loaded; the live one still answers.
        """
        with self._lock:
            target = self._find(stream, generation)
            slot = self._slots[stream]
            resident = any(ref.digest == target.digest for ref in slot.residents())
            ready = None
            if not resident:
                try:
                    ready = self._runtime.build(stream, target.digest)
                except SwapError:
                    self._metrics.swaps.labels(stream, "failed").inc()
                    raise
            reason = f"operator asked for generation {target.number}"
            now, before = self._clock.now(), self._state.live(stream)
            fact = GenerationRolledBack(
                stream=stream,
                generation=target.digest,
                generation_number=target.number,
                previous=None if before is None else before.digest,
            )
            self._state.set_live(
                stream,
                target.digest,
                Decision(now, KIND, POLICY, True, reason),
                events=self._events.of(now, fact),
            )
            if ready is None:
                report = slot.promote_resident(target.digest)
            else:
                report = slot.publish(ready, target.number)
            self._metrics.swaps.labels(stream, "rolled_back").inc()
            self._show(stream, target)
        log.warning(
            "generation.rolled_back",
            stream=stream,
            generation=target.number,
            digest=target.digest,
            loaded=not resident,
            pause_seconds=report.pause_seconds,
        )
        return target

    def classes(self, stream: str) -> dict[int, str]:
        """Return the live generation's classes, id to label; none before the first promotion."""
        live = self._state.live(stream)
        return {} if live is None else self._class_table(live.digest)

    def method(self, stream: str) -> str:
        """Return the method of the live generation, which there must be."""
        live = self._state.live(stream)
        assert live is not None, "no generation is live"
        return str(self._directory.manifest(live.digest)["method"])

    def holding(self, stream: str, class_id: int) -> tuple[str, ...]:
        """Return the digests of the stream's generations that hold a class; unreadable ones may."""
        found = []
        for record in self._state.generations(stream):
            try:
                holds = class_id in self._class_table(record.digest)
            except EngineError as error:
                log.warning("generation.unreadable", stream=stream, digest=record.digest, error=str(error))
                holds = True
            if holds:
                found.append(record.digest)
        return tuple(found)

    def prune(self, stream: str, keep: int) -> tuple[str, ...]:
        """Take the generations off the stream's list that a rollback is not to reach any more.

        Kept are the `keep` newest, the live one and those in memory.

        Returns:
            The digests taken off; `sweep` deletes their files.
        """
        with self._lock:
            live = self._state.live(stream)
            kept = {ref.digest for ref in self._slots[stream].residents()}
            kept |= set() if live is None else {live.digest}
            old = self._state.generations(stream)[:-keep]
            removed = tuple(record.digest for record in old if record.digest not in kept)
            if removed:
                self._state.remove_generations(stream, removed)
                log.info("generation.pruned", stream=stream, digests=removed)
        return removed

    def sweep(self) -> None:
        """Delete the files of every generation on no stream's list: pruned, rejected, or left by a kill.

        Only while no trainer works: what it has just written is on no list yet.
        """
        with self._lock:
            listed = self._state.generation_digests()
            for digest in self._directory.digests():
                if digest not in listed:
                    self._directory.remove(digest)
                    log.info("generation.deleted", digest=digest)

    def _class_table(self, digest: str) -> dict[int, str]:
        return {int(entry[0]): str(entry[1]) for entry in self._directory.manifest(digest)["classes"]}

    def _find(self, stream: str, wanted: str | None) -> GenerationRecord:
        records = {record.number: record for record in self._state.generations(stream)}
        live = self._state.live(stream)
        if wanted is None:
            earlier = [number for number in records if live is not None and number < live.number]
            if not earlier:
                raise UnknownGeneration(f"stream {stream!r} has no generation before the live one")
            return records[max(earlier)]
        for record in records.values():
            if wanted in {str(record.number), record.digest}:
                return record
        known = ", ".join(str(number) for number in sorted(records)) or "none"
        raise UnknownGeneration(f"stream {stream!r} has no generation {wanted!r}; it has {known}")

    def _show(self, stream: str, record: GenerationRecord) -> None:
        """Show the live generation's numbers; called with the lock held."""
        manifest = self._directory.manifest(record.digest)
        metrics, evaluation = self._metrics, manifest["evaluation"]
        metrics.live_generation.labels(stream).set(record.number)
        before = self._shown.pop(stream, None)
        if before is not None:
            metrics.generation_info.remove(*before)
        labels = (stream, str(record.number), record.digest, str(manifest["method"]))
        metrics.generation_info.labels(*labels).set(1)
        self._shown[stream] = labels
        metrics.certificate_ok.labels(stream).set(bool(manifest["certificate"].get("holds")))
        for kind, value in accuracies(evaluation).items():
            metrics.accuracy.labels(stream, kind).set(value)
        metrics.forgetting.labels(stream).set(evaluation.get("forgetting", 0.0))
        metrics.backward_transfer.labels(stream).set(evaluation.get("backward_transfer", 0.0))


def accuracies(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return A_T, A_bar and the worst class's accuracy from an evaluation; those that were measured."""
    classes = evaluation.get("class_accuracy") or {}
    found = {
        "last": evaluation.get("a_t"),
        "average": evaluation.get("a_bar"),
        "min_class": min(classes.values(), default=None),
    }
    return {kind: float(value) for kind, value in found.items() if value is not None}
