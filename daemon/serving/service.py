"""What the HTTP service is made of: the streams' slots, the batcher, metrics and checks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from cl_engine.learners.base import Prediction
from daemon.errors import BadRequest, UnknownStream
from daemon.messages.formats import TEXT
from daemon.metrics import Metrics
from daemon.serving.batcher import Batcher
from daemon.serving.payloads import Payload, decode, sniff
from daemon.serving.slot import GenerationRef, LiveSlot
from daemon.settings import LimitSettings, ServingSettings

Check = Callable[[], tuple[bool, str]]

# A batch on a slow processor takes seconds; a batcher that is silent for a minute is stuck.
BATCHER_STALL_SECONDS = 60.0
# Decoding leaves the GIL for most of its time; more threads than this take the cores from predict.
_MAX_DECODERS = 4


@dataclass(frozen=True)
class Pending:
    """A request that is queued: what will answer it, and where the answer will be."""

    generation: GenerationRef
    future: Future[Prediction]


class ServingService:
    """The parts that requests go through, and the checks that say whether they work.

    Attributes:
        slots: the streams by name.
        live_checks, ready_checks, startup_checks: named checks of the three probes; a stream that has
            learnt nothing yet does not make the service unready, or no first sample could be sent to
            it: `/v2/models/{name}/ready` speaks for one model. Each check returns
            whether it holds and a detail for people. The daemon adds its own.
        draining: set when the service is about to stop: not ready, though it still answers.

    Args:
        slots: the streams by name.
        batcher: computes for all of them; started and stopped by the caller.
        metrics: the daemon's instruments.
        serving, limits: settings.
        text_streams: streams whose inputs are texts, not images.
    """

    def __init__(
        self,
        slots: Mapping[str, LiveSlot],
        batcher: Batcher,
        metrics: Metrics,
        serving: ServingSettings,
        limits: LimitSettings,
        text_streams: frozenset[str] = frozenset(),
    ) -> None:
        self.slots = slots
        self.metrics = metrics
        self.serving = serving
        self.limits = limits
        self.draining = False
        self.live_checks: dict[str, Check] = {"batcher": self._check_batcher}
        self.ready_checks: dict[str, Check] = {"accepting": self._check_accepting}
        self.startup_checks: dict[str, Check] = {"batcher": self._check_batcher}
        self.decoders = ThreadPoolExecutor(min(_MAX_DECODERS, os.cpu_count() or 1), "serving-decoder")
        self._text_streams = text_streams
        self._batcher = batcher

    def slot(self, stream: str) -> LiveSlot:
        """Return a stream's slot.

        Raises:
            UnknownStream: no such stream.
        """
        try:
            return self.slots[stream]
        except KeyError:
            raise UnknownStream(
                f"no stream {stream[:64]!r} is served here: use one of {', '.join(sorted(self.slots))}"
            ) from None

    def takes_text(self, stream: str) -> bool:
        """Whether the stream's inputs are texts."""
        return stream in self._text_streams

    def guess(self, stream: str, data: bytes) -> str:
        """Return the content type of a payload that names none.

        Raises:
            BadRequest: it begins like no image, and the stream takes images.
        """
        return TEXT if self.takes_text(stream) else sniff(data)

    def submit(self, stream: str, payloads: Sequence[Payload], version: str | None = None) -> Pending:
        """Pin a generation, decode the inputs for it and queue them; blocks while decoding.

        Args:
            stream: which stream answers.
            payloads: the encoded inputs.
            version: digest or number of a resident generation; None for the live one.

        Raises:
            UnknownStream, UnknownGeneration, NotReady: there is nothing to answer with.
            BadRequest: no inputs, or too many.
            InputError: an input cannot be decoded.
            Overloaded: the queue is full.
        """
        slot = self.slot(stream)
        if not 1 <= len(payloads) <= self.serving.max_inputs_per_request:
            raise BadRequest(
                f"the request has {len(payloads)} inputs: send 1 to {self.serving.max_inputs_per_request} "
                "(serving.max_inputs_per_request)"
            )
        lease = slot.acquire(None if version is None else slot.resolve(version))
        try:
            inputs = decode(lease.servable, payloads)
        except BaseException:
            lease.release()
            raise
        return Pending(lease.generation, self._batcher.submit(lease, inputs))

    def ready(self) -> bool:
        """Run the readiness checks and show the result as a metric."""
        ready = all(check()[0] for check in self.ready_checks.values())
        self.metrics.ready.set(ready)
        return ready

    def close(self) -> None:
        """End the decoding threads once they are idle; idempotent."""
        self.decoders.shutdown(wait=True)

    def _check_batcher(self) -> tuple[bool, str]:
        silent = time.monotonic() - self._batcher.heartbeat
        if not self._batcher.alive:
            return False, "the thread has ended"
        return silent < BATCHER_STALL_SECONDS, f"last turn {silent:.1f} s ago"

    def _check_accepting(self) -> tuple[bool, str]:
        return not self.draining, "stopping" if self.draining else "taking requests"
