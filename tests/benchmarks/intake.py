"""Intake rate against a bare consumer loop over the same topic of a real Apache Kafka.

The bare loop is kafka-python's `poll` and nothing else. Ours is the daemon's whole way in: the consumer's
thread, the bounded queue, parsing and validation, the holdout's choice, one SQLite transaction per poll
with samples and offsets, and the commit. Both count samples, from the first ones seen to the last.
"""

from __future__ import annotations

import io
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from kafka import KafkaConsumer
from PIL import Image

from cl_engine import assets
from daemon.clock import SystemClock
from daemon.intake import Intake
from daemon.messages.encode import Item, arrow_class_batch, json_class_batch, raw_message
from daemon.metrics import Metrics
from daemon.sessions.job import Job, ProgressEvent
from daemon.sessions.trainer import TrainerProcess
from daemon.settings import BackboneSettings, LimitSettings, LogSettings, TrainerSettings
from daemon.settings import KafkaSource as KafkaSettings
from daemon.sources.base import Message, Place, Record
from daemon.sources.kafka import KafkaSink, KafkaSource
from daemon.sources.kafka.consumer import MAX_POLL_RECORDS
from daemon.sources.kafka.topics import TopicPlan, create_topics
from daemon.state import SqlState
from daemon.state.base import Decision, NewSample, StoreResult
from tests.benchmarks.frame import Figure, parse_options, report
from tests.support.kafka_broker import KafkaBroker

STREAM = "bench"
IMAGE_SIDE = 36
BATCH_SAMPLES = 50
CONTENT_TYPE = "image/png"
TRAINING_SAMPLES = 1000
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Size:
    """How much is measured: samples a topic, and rounds of which the median counts."""

    samples: int
    rounds: int
    training_image_size: int


QUICK = Size(samples=4000, rounds=1, training_image_size=56)
FULL = Size(samples=60_000, rounds=3, training_image_size=224)


@dataclass
class Progress:
    """Counts samples; its clock starts when the first records have been fetched."""

    wanted: int
    counted: int = 0
    first_count: int = 0
    first_at: float = 0.0
    last_at: float = 0.0

    def fetched(self, samples: int) -> None:
        """Note what one poll returned; the first one starts the clock."""
        if samples and not self.first_count:
            self.first_at, self.first_count = time.perf_counter(), samples

    def add(self, samples: int) -> None:
        """Count samples that are done with."""
        if samples:
            self.last_at = time.perf_counter()
            self.counted += samples

    def rate(self) -> float:
        """Return samples a second after the first poll's."""
        assert self.counted == self.wanted, f"{self.counted} of {self.wanted} samples"
        return (self.counted - self.first_count) / (self.last_at - self.first_at)


def png(generator: np.random.Generator) -> bytes:
    """Encode noise: about 4 KB, and no two alike."""
    buffer = io.BytesIO()
    pixels = generator.integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def single(samples: Sequence[Item]) -> list[Message]:
    """Build one record per sample."""
    return [raw_message(f"class-{i % 10}", CONTENT_TYPE, item) for i, item in enumerate(samples)]


def arrow(samples: Sequence[Item]) -> list[Message]:
    """Build Arrow class batches."""
    return _batches(samples, arrow_class_batch)


def json(samples: Sequence[Item]) -> list[Message]:
    """Build JSON class batches."""
    return _batches(samples, json_class_batch)


def _batches(samples: Sequence[Item], build: Callable[[str, str, Sequence[Item]], Message]) -> list[Message]:
    starts = range(0, len(samples), BATCH_SAMPLES)
    return [
        build(f"class-{i % 10}", CONTENT_TYPE, samples[start : start + BATCH_SAMPLES])
        for i, start in enumerate(starts)
    ]


def bare(settings: KafkaSettings, samples: int, per_record: int) -> float:
    """Return the rate of a loop that polls and touches each value, in samples a second.

    Its consumer fetches and checks as ours does.
    """
    consumer = KafkaConsumer(
        settings.topic,
        bootstrap_servers=settings.bootstrap_servers,
        group_id=f"bare-{time.monotonic_ns()}",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_bytes=settings.fetch_bytes,
        max_partition_fetch_bytes=settings.partition_fetch_bytes,
        max_poll_records=MAX_POLL_RECORDS,
        check_crcs=True,
        metrics_enabled=False,
    )
    progress, size = Progress(samples), 0
    try:
        end = time.monotonic() + PATIENCE_SECONDS
        while progress.counted < samples and time.monotonic() < end:
            for records in consumer.poll(500).values():
                progress.fetched(len(records) * per_record)
                size += sum(len(record.value) for record in records)
                progress.add(len(records) * per_record)
    finally:
        consumer.close()
    assert size > samples * IMAGE_SIDE, "the values are not there"
    return progress.rate()


def source_alone(settings: KafkaSettings, samples: int, per_record: int) -> float:
    """Return the rate of the Kafka source without parsing and storing: its thread, queue and commits."""
    group = settings.model_copy(update={"group_id": f"alone-{time.monotonic_ns()}"})
    source = KafkaSource(group, SystemClock())
    progress = Progress(samples)
    try:
        source.start({})
        end = time.monotonic() + PATIENCE_SECONDS
        while progress.counted < samples and time.monotonic() < end:
            records = source.poll(0.5, MAX_POLL_RECORDS)
            progress.fetched(len(records) * per_record)
            progress.add(len(records) * per_record)
            if records:
                source.commit({records[-1].place: records[-1].offset + 1})
    finally:
        source.close()
    return progress.rate()


class WatchedSource(KafkaSource):
    """A source that tells of what it returns."""

    def __init__(self, settings: KafkaSettings, progress: Progress, per_record: int) -> None:
        super().__init__(settings, SystemClock())
        self._progress, self._per_record = progress, per_record

    def poll(self, timeout: float, max_records: int) -> Sequence[Record]:
        """Poll, and start the clock with the first records."""
        records = super().poll(timeout, max_records)
        self._progress.fetched(len(records) * self._per_record)
        return records


def ours(settings: KafkaSettings, samples: int, per_record: int) -> float:
    """Return the rate of the daemon's intake into a new state, in samples a second."""
    clock, progress, done = SystemClock(), Progress(samples), threading.Event()

    def stored(result: StoreResult) -> None:
        progress.add(result.stored)
        if progress.counted >= samples:
            done.set()

    group = settings.model_copy(update={"group_id": f"ours-{time.monotonic_ns()}"})
    metrics = Metrics()
    metrics.initialise([STREAM], [])
    sink = KafkaSink(group)
    with tempfile.TemporaryDirectory() as directory:
        state = SqlState.open(Path(directory), holdout_fraction={STREAM: 0.2}, clock=clock)
        intake = Intake(
            STREAM,
            source=WatchedSource(group, progress, per_record),
            sink=sink,
            state=state,
            metrics=metrics,
            clock=clock,
            limits=LimitSettings(),
            default_content_type=None,
            content_types=frozenset({CONTENT_TYPE}),
            on_stored=stored,
        )
        intake.start()
        try:
            done.wait(PATIENCE_SECONDS)
        finally:
            intake.stop()
            intake.join(30.0)
            sink.close()
            state.close()
    assert intake.failed is None, intake.failed
    return progress.rate()


@contextmanager
def training(directory: Path, image_size: int) -> Iterator[Callable[[bool], None]]:
    """Run a session in the daemon's own trainer process, as the daemon would start it.

    Yields a switch: False freezes the process, so that runs beside it and without it can alternate.

    Args:
        directory: becomes the state directory of the session.
        image_size: side of the backbone's input, pixels.
    """
    clock = SystemClock()
    state = SqlState.open(directory, holdout_fraction={STREAM: 0.2}, clock=clock)
    trainer = TrainerProcess(TrainerSettings(), LogSettings(level="error"))
    try:
        state.store(STREAM, _cifar10(), [], {})
        record = state.begin_session(
            STREAM,
            new_classes=tuple(c.id for c in state.classes(STREAM)),
            method="sgds",
            # More epochs than there is time for: the session never ends by itself.
            settings={"explore_epochs": 10_000},
            seed=0,
            decision=Decision(clock.now(), "trigger", "benchmark", True, "the benchmark wants it"),
            at=clock.now(),
        )
        trainer.submit(
            Job(
                stream=STREAM,
                session=record.id,
                attempt=record.attempt,
                new_classes=record.new_classes,
                parent=None,
                method=record.method,
                options=dict(record.settings),
                seed=record.seed,
                state_directory=directory,
                holdout_limit_per_class=50,
                limits=LimitSettings(),
                backbone=BackboneSettings(image_size=image_size, threads=TrainerSettings().threads),
            )
        )
        end = time.monotonic() + PATIENCE_SECONDS
        while not any(isinstance(e, ProgressEvent) and e.phase == "explore" for e in trainer.events(1.0)):
            assert trainer.crashed() is None, trainer.crashed()
            assert time.monotonic() < end, "training did not start"

        def switch(on: bool) -> None:
            assert trainer.crashed() is None, trainer.crashed()
            assert trainer.pid is not None, "submitted above"
            os.kill(trainer.pid, signal.SIGCONT if on else signal.SIGSTOP)

        yield switch
    finally:
        if trainer.pid is not None:
            os.kill(trainer.pid, signal.SIGCONT)
        trainer.stop()
        state.close()


def _cifar10() -> list[NewSample]:
    data = assets.load_images("cifar10")
    samples = []
    for n in range(TRAINING_SAMPLES):
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(data.test_images[n])).save(buffer, "PNG")
        label = data.class_names[int(data.test_labels[n])]
        samples.append(
            NewSample(f"image-{n}", label, CONTENT_TYPE, buffer.getvalue(), Place(STREAM, 0), n, 0, 0.0)
        )
    return samples


def main() -> None:
    """Measure and report."""
    options = parse_options("intake", "Samples a second from Kafka into the state, against a bare poll loop.")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    size = QUICK if options.quick else FULL
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        broker = KafkaBroker(Path(directory))
        broker.start()
        try:
            for seed in options.seeds:
                measure(broker.address, seed, size, rates)
        finally:
            broker.stop()
    median = {name: statistics.median(values) for name, values in rates.items()}
    figures: dict[str, Figure] = {
        "single_over_bare": median["single"] / median["single_bare"],
        "batched_over_bare": median["arrow"] / median["arrow_bare"],
        "json_batched_over_bare": median["json"] / median["json_bare"],
        "training_over_idle": median["single_training"] / median["single_idle"],
        "single_source_over_bare": median["single_source"] / median["single_bare"],
        "batched_source_over_bare": median["arrow_source"] / median["arrow_bare"],
        **{f"{name}_samples_per_second": rate for name, rate in median.items()},
    }
    report(
        options,
        "intake",
        figures,
        [
            f"{size.samples} images a run, median of {size.rounds} interleaved rounds, images a second",
            f"batched: Arrow class batches of {BATCH_SAMPLES} images, bare and ours over the same topic",
        ],
    )


def measure(address: str, seed: int, size: Size, rates: dict[str, list[float]]) -> None:
    """Fill the topics and drain each in turn, bare and ours, and once more beside training."""
    generator = np.random.default_rng(seed)
    items = [Item(png(generator)) for _ in range(size.samples)]
    formats = {"single": (single, 1), "arrow": (arrow, BATCH_SAMPLES), "json": (json, BATCH_SAMPLES)}
    settings = {
        name: KafkaSettings(bootstrap_servers=[address], topic=f"{name}-{seed}", compression="none")
        for name in formats
    }
    for name, (build, _) in formats.items():
        create_topics(settings[name], [TopicPlan(settings[name].topic, "benchmark")], replication=1)
        sink = KafkaSink(settings[name])
        messages = build(items)
        for start in range(0, len(messages), 1000):
            sink.send(settings[name].topic, messages[start : start + 1000])
        sink.close()
    del items
    for _ in range(size.rounds):
        for name, (_, per_record) in formats.items():
            for kind, measured in (("_bare", bare), ("", ours), ("_source", source_alone)):
                rate = measured(settings[name], size.samples, per_record)
                rates.setdefault(f"{name}{kind}", []).append(rate)
    with (
        tempfile.TemporaryDirectory() as directory,
        training(Path(directory), size.training_image_size) as train,
    ):
        for _ in range(size.rounds):
            for name, on in (("single_idle", False), ("single_training", True)):
                train(on)
                rates.setdefault(name, []).append(ours(settings["single"], size.samples, 1))


if __name__ == "__main__":
    main()
