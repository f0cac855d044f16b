"""An intake with a real state and everything else scripted, and messages for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from daemon.intake import Intake
from daemon.messages.checks import PAYLOAD_TYPES
from daemon.messages.encode import Item, raw_message
from daemon.metrics import RECORD_OUTCOMES, SAMPLE_OUTCOMES, Metrics
from daemon.settings import LimitSettings
from daemon.sources.base import Message, Record, Sink, Source
from daemon.state import SqlState
from daemon.state.base import StoreResult
from tests.support.ingest import FlakySink, ScriptedSource, image, record
from tests.support.manual_clock import ManualClock


class Workbench:
    """An intake with a real state and everything else scripted."""

    def __init__(self, directory: Path) -> None:
        self.clock = ManualClock()
        self.state = SqlState.open(directory, holdout_fraction={"s": 0.2}, clock=self.clock)
        self.metrics = Metrics(CollectorRegistry())
        self.stored: list[StoreResult] = []
        self.on_stored: Callable[[StoreResult], None] = self.stored.append

    def intake(self, source: Source, sink: Sink) -> Intake:
        """Build an intake that has not started."""
        return Intake(
            "s",
            source=source,
            sink=sink,
            state=self.state,
            metrics=self.metrics,
            clock=self.clock,
            limits=LimitSettings(max_message_bytes=10_000),
            content_types=PAYLOAD_TYPES,
            default_content_type=None,
            on_stored=self.on_stored,
            random_source=random.Random(3),
        )

    def run(self, source: ScriptedSource, sink: Sink | None = None) -> Intake:
        """Run an intake until the source's script ends, or it fails."""
        intake = self.intake(source, sink or FlakySink())
        source.at_end = intake.stop
        intake.start()
        assert intake.join(30)
        return intake

    def value(self, name: str, **labels: str) -> float:
        """Read a metric of the stream."""
        found = self.metrics.registry.get_sample_value(name, {"stream": "s"} | labels)
        return 0.0 if found is None else found

    def records(self) -> dict[str, float]:
        """Read the record counters."""
        return {o: self.value("accrete_records_consumed_total", outcome=o) for o in RECORD_OUTCOMES}

    def samples(self) -> dict[str, float]:
        """Read the sample counters."""
        return {o: self.value("accrete_samples_total", outcome=o) for o in SAMPLE_OUTCOMES}


def good(n: int) -> Message:
    """Build a good message, different for each number."""
    return raw_message("cat", "image/png", Item(image(n)))


def log_of(messages: Sequence[Message]) -> list[Record]:
    """Lay messages into one partition."""
    return [record(message, offset) for offset, message in enumerate(messages)]
