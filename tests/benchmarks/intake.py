"""Intake rate against a bare consumer loop over the same topic of a real Apache Kafka.

The bare loop is kafka-python's `poll` and nothing else. Ours is the daemon's whole way in: the consumer's
thread, the bounded queue, parsing and validation, the holdout's choice, one SQLite transaction per poll
with samples and offsets, and the commit. Both count samples, from the first ones seen to the last.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import structlog
from kafka import KafkaConsumer
from PIL import Image

from daemon.clock import SystemClock
from daemon.intake import Intake
from daemon.messages.encode import Item, arrow_class_batch, raw_message
from daemon.metrics import Metrics
from daemon.settings import KafkaSource as KafkaSettings
from daemon.settings import LimitSettings, TrainerSettings
from daemon.sources.base import Message
from daemon.sources.kafka import KafkaSink, KafkaSource
from daemon.sources.kafka.topics import TopicPlan, create_topics
from daemon.state import SqlState
from daemon.state.base import StoreResult
from tests.benchmarks.frame import Figure, parse_options, report
from tests.support.kafka_broker import KafkaBroker

STREAM = "bench"
IMAGE_SIDE = 36
BATCH_SAMPLES = 50
CONTENT_TYPE = "image/png"
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
    """Counts samples and knows when the first and the last of them came."""

    wanted: int
    counted: int = 0
    first_count: int = 0
    first_at: float = 0.0
    last_at: float = 0.0

    def add(self, samples: int) -> None:
        """Count samples that came together."""
        if not samples:
            return
        self.last_at = time.perf_counter()
        if not self.counted:
            self.first_at, self.first_count = self.last_at, samples
        self.counted += samples

    def rate(self) -> float:
        """Return samples a second after the first ones."""
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


def batched(samples: Sequence[Item]) -> list[Message]:
    """Build Arrow class batches."""
    starts = range(0, len(samples), BATCH_SAMPLES)
    return [
        arrow_class_batch(f"class-{i % 10}", CONTENT_TYPE, samples[start : start + BATCH_SAMPLES])
        for i, start in enumerate(starts)
    ]


def bare(address: str, topic: str, samples: int, per_record: int) -> float:
    """Return the rate of a loop that polls and does nothing, in samples a second."""
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=address,
        group_id=f"bare-{time.monotonic_ns()}",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    progress = Progress(samples)
    try:
        end = time.monotonic() + PATIENCE_SECONDS
        while progress.counted < samples and time.monotonic() < end:
            for records in consumer.poll(500).values():
                progress.add(len(records) * per_record)
    finally:
        consumer.close()
    return progress.rate()


def source_alone(settings: KafkaSettings, samples: int, per_record: int) -> float:
    """Return the rate of the Kafka source without parsing and storing: its thread, queue and commits."""
    source = KafkaSource(
        settings.model_copy(update={"group_id": f"alone-{time.monotonic_ns()}"}), SystemClock()
    )
    progress = Progress(samples)
    try:
        source.start({})
        end = time.monotonic() + PATIENCE_SECONDS
        while progress.counted < samples and time.monotonic() < end:
            records = source.poll(0.5, 500)
            progress.add(len(records) * per_record)
            if records:
                source.commit({records[-1].place: records[-1].offset + 1})
    finally:
        source.close()
    return progress.rate()


def ours(settings: KafkaSettings, samples: int) -> float:
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
            source=KafkaSource(group, clock),
            sink=sink,
            state=state,
            metrics=metrics,
            clock=clock,
            limits=LimitSettings(),
            default_content_type=None,
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


def _train(image_size: int, pipe: Connection) -> None:
    # Late, and here alone: the measuring process needs no torch, and this one's start is not measured.
    from tests.benchmarks.generations import teach

    os.nice(TrainerSettings().niceness)
    teach(0, sessions=1, image_size=image_size, per_class=8, images=0, epochs=1)
    pipe.send("training")
    while not pipe.poll():
        teach(0, sessions=5, image_size=image_size, per_class=100, images=0, epochs=3)


@contextmanager
def training(image_size: int) -> Iterator[Callable[[bool], None]]:
    """Run SGDS sessions one after the other in a process of the trainer's priority.

    Yields a switch: False freezes the process, so that runs beside it and without it can alternate.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_train, args=(image_size, there), daemon=True)
    process.start()
    # With this end closed, a child that dies is heard of at once.
    there.close()

    def switch(on: bool) -> None:
        assert process.pid is not None, "started above"
        assert process.is_alive(), "training has ended by itself"
        os.kill(process.pid, signal.SIGCONT if on else signal.SIGSTOP)

    try:
        assert here.poll(PATIENCE_SECONDS), "training did not start"
        assert here.recv() == "training"
        yield switch
    finally:
        process.kill()
        process.join()


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
        "batched_over_bare": median["batched"] / median["batched_bare"],
        "training_over_idle": median["single_training"] / median["single_idle"],
        "single_source_over_bare": median["single_source"] / median["single_bare"],
        "batched_source_over_bare": median["batched_source"] / median["batched_bare"],
        **{f"{name}_samples_per_second": rate for name, rate in median.items()},
    }
    report(
        options,
        "intake",
        figures,
        [f"{size.samples} samples a run, median of {size.rounds} interleaved rounds"],
    )


def measure(address: str, seed: int, size: Size, rates: dict[str, list[float]]) -> None:
    """Fill two topics and drain each in turn, bare and ours, and once more beside training."""
    generator = np.random.default_rng(seed)
    items = [Item(png(generator)) for _ in range(size.samples)]
    formats = {"single": (single, 1), "batched": (batched, BATCH_SAMPLES)}
    settings = {
        name: KafkaSettings(bootstrap_servers=[address], topic=f"{name}-{seed}", compression="none")
        for name in formats
    }
    for name, (build, _) in formats.items():
        create_topics(settings[name], [TopicPlan(settings[name].topic, "benchmark")], replication=1)
        sink = KafkaSink(settings[name])
        messages = build(items)
        for start in range(0, len(messages), 2000):
            sink.send(settings[name].topic, messages[start : start + 2000])
        sink.close()
    for _ in range(size.rounds):
        for name, (_, per_record) in formats.items():
            found = rates.setdefault(f"{name}_bare", [])
            found.append(bare(address, settings[name].topic, size.samples, per_record))
            rates.setdefault(name, []).append(ours(settings[name], size.samples))
            rates.setdefault(f"{name}_source", []).append(
                source_alone(settings[name], size.samples, per_record)
            )
    with training(size.training_image_size) as train:
        for _ in range(size.rounds):
            for name, on in (("single_idle", False), ("single_training", True)):
                train(on)
                rates.setdefault(name, []).append(ours(settings["single"], size.samples))


if __name__ == "__main__":
    main()
