"""A complete HTTP service on loopback, with fake servables and a fake daemon behind it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from daemon.errors import BadRequest, ForgettingRefused, SwapError, UnknownClass, UnknownStream
from daemon.metrics import Metrics
from daemon.serving.batcher import Batcher
from daemon.serving.http import HttpServer, create_app
from daemon.serving.service import ServingService
from daemon.serving.slot import LiveSlot
from daemon.settings import LimitSettings, ServingSettings
from daemon.sources.base import Message
from daemon.state.base import ClassRecord, ClassState, Decision, GenerationRecord, SessionRecord


def encoded_image(seed: int = 0, image_format: str = "PNG", side: int = 8) -> bytes:
    """Encode a random image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


@dataclass
class FakeControl:
    """Records what it is asked; knows one stream."""

    stream: str = "s"
    calls: list[tuple[str, object]] = field(default_factory=list)

    def _note(self, stream: str, call: str, argument: object = None) -> Mapping[str, Any]:
        if stream != self.stream:
            raise UnknownStream(f"no stream {stream!r} is configured")
        self.calls.append((call, argument))
        return {"call": call}

    def status(self, stream: str) -> Mapping[str, Any]:
        """Answer with the call's name."""
        return self._note(stream, "status")

    def sessions(self, stream: str) -> Sequence[SessionRecord]:
        """List nothing."""
        self._note(stream, "sessions")
        return []

    def classes(self, stream: str) -> Sequence[ClassRecord]:
        """List one class."""
        self._note(stream, "classes")
        return [ClassRecord(0, "grün", ClassState.LIVE, 12.5)]

    def generations(self, stream: str) -> Sequence[GenerationRecord]:
        """List nothing."""
        self._note(stream, "generations")
        return []

    def decisions(self, stream: str, limit: int) -> Sequence[Decision]:
        """List nothing."""
        self._note(stream, "decisions", limit)
        return []

    def flush(self, stream: str) -> Mapping[str, Any]:
        """Answer with the call's name."""
        return self._note(stream, "flush")

    def pause(self, stream: str) -> Mapping[str, Any]:
        """Answer with the call's name."""
        return self._note(stream, "pause")

    def resume(self, stream: str) -> Mapping[str, Any]:
        """Answer with the call's name."""
        return self._note(stream, "resume")

    def rollback(self, stream: str, generation: str | None) -> Mapping[str, Any]:
        """Refuse generation 13."""
        if generation == "13":
            raise SwapError("generation 13 does not load")
        return self._note(stream, "rollback", generation)

    def forget(self, stream: str, label: str) -> Mapping[str, Any]:
        """Know every class but `nobody`; refuse `last`."""
        if label == "nobody":
            raise UnknownClass("there is no class 'nobody'")
        if label == "last":
            raise ForgettingRefused("nothing would be left")
        return self._note(stream, "forget", label)

    def remember(self, stream: str, label: str) -> Mapping[str, Any]:
        """Answer with the call's name."""
        return self._note(stream, "remember", label)

    def ingest(self, stream: str, message: Message) -> Mapping[str, Any]:
        """Keep the message; refuse one without a label."""
        if "label" not in message.headers:
            raise BadRequest("the header label is missing")
        return self._note(stream, "ingest", message)


@dataclass
class RunningService:
    """What a test talks to."""

    url: str
    slot: LiveSlot
    service: ServingService
    batcher: Batcher
    server: HttpServer
    control: FakeControl

    def count(self, endpoint: str, outcome: str) -> float:
        """Return the request counter of one outcome."""
        labels = {"stream": "s", "endpoint": endpoint, "outcome": outcome}
        value = self.service.metrics.registry.get_sample_value("accrete_inference_requests_total", labels)
        assert value is not None
        return value


@contextmanager
def http_service(
    limits: LimitSettings | None = None, text: bool = False, **settings: Any
) -> Iterator[RunningService]:
    """Run a service with one stream `s` on a free port."""
    serving = ServingSettings.model_validate({"port": 0, **settings})
    metrics = Metrics()
    metrics.initialise(["s"], [])
    slot = LiveSlot("s", serving.max_resident_generations, metrics)
    batcher = Batcher(serving, metrics)
    service = ServingService(
        {"s": slot},
        batcher,
        metrics,
        serving,
        limits or LimitSettings(),
        frozenset({"s"}) if text else frozenset(),
    )
    control = FakeControl()
    server = HttpServer(create_app(service, control, version="1.2.3"), service)
    batcher.start()
    port = server.start()
    try:
        yield RunningService(f"http://127.0.0.1:{port}", slot, service, batcher, server, control)
    finally:
        server.stop(1.0)
        batcher.stop()
        assert batcher.join(20)
