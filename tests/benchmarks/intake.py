"""Intake rate against a bare consumer loop over the same topic of a real Apache Kafka.

The bare loop polls with the same fetch settings, checks the same checksums and touches each value. Ours is
the daemon's whole way in: the consumer's thread, the bounded queue, parsing and the structural check of each
image, its SHA-256 as its id, the holdout's choice, payloads and rows made durable, and the commit. Both are
in images a second from the moment of the first poll's records on, without those; `batched_over_bare`, too,
is images over images of the same batched topic.

The consumer has a process of its own, as in the daemon; `_source` is that of one in this process.

Where the rest goes is measured in the same run: the processor time per image of fetching alone (`_bare_cpu`),
of the whole (`_cpu`, also from the first poll's records on, the consumer's process included), and of its
parts, parsing (`_parse_cpu`) and storing (`_store_cpu`), in seconds; `_broker_cpu` is Kafka's own meanwhile.
Python runs one thread of a process at a time, and only waiting, SQLite and the file system happen beside it.
On two cores, which the broker needs too, the bound is the sum of all processor time. What of the parts no
implementation leaves out is `_floor_` (`intake_parts`); `batched_floor_over_bare` is the bound that follows:
fetching, the broker and the floor, and no Python between them.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import structlog
from kafka import KafkaConsumer
from PIL import Image

from daemon.clock import SystemClock
from daemon.intake import Intake
from daemon.interpreter import SWITCH_SECONDS, keep_what_is_there
from daemon.messages.encode import Item, arrow_class_batch, json_class_batch, raw_message
from daemon.metrics import Metrics
from daemon.settings import KafkaSource as KafkaSettings
from daemon.settings import LimitSettings, LogSettings
from daemon.sources import open_source
from daemon.sources.base import Message, Record, Source
from daemon.sources.kafka import KafkaSink, KafkaSource
from daemon.sources.kafka.consumer import MAX_POLL_RECORDS
from daemon.sources.kafka.topics import TopicPlan, create_topics
from daemon.sources.log import EmbeddedLog
from daemon.state import SqlState
from daemon.state.base import StoreResult
from tests.benchmarks.frame import Figure, parse_options, report
from tests.benchmarks.intake_parts import STREAM, Floor, parts_cpu
from tests.benchmarks.running_session import training
from tests.support.kafka_broker import KafkaBroker

IMAGE_SIDE = 36
BATCH_SAMPLES = 50
CONTENT_TYPE = "image/png"
CONSUMER = "daemon.sources.kafka.child"
# What the parts are timed with.
TIMED_SAMPLES = 8000
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Size:
    """How much is measured: samples a topic, and rounds of which the median counts."""

    samples: int
    rounds: int
    training_image_size: int


QUICK = Size(samples=12_000, rounds=1, training_image_size=56)
FULL = Size(samples=60_000, rounds=3, training_image_size=224)


class Processor(NamedTuple):
    """Processor seconds: of this process and the consumer's, and of the broker."""

    ours: float
    broker: float


NOTHING = Processor(0.0, 0.0)


def processor_seconds() -> Processor:
    """Return what has been used so far."""
    ours, broker = sum(os.times()[:2]), 0.0
    for child in psutil.Process().children():
        used = sum(child.cpu_times()[:2])
        if child.name() == "java":
            broker += used
        elif CONSUMER in child.cmdline():
            ours += used
    return Processor(ours, broker)


@dataclass
class Progress:
    """Counts samples; its clock starts when the first records have been fetched."""

    wanted: int
    counted: int = 0
    first_count: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    first_cpu: Processor = NOTHING
    last_cpu: Processor = NOTHING

    def fetched(self, samples: int) -> None:
        """Note what one poll returned; the first one starts the clock."""
        if samples and not self.first_count:
            self.first_cpu = processor_seconds()
            self.first_at, self.first_count = time.perf_counter(), samples

    def add(self, samples: int) -> None:
        """Count samples that are done with."""
        if samples:
            self.last_at = time.perf_counter()
            self.counted += samples
            if self.counted >= self.wanted:
                self.last_cpu = processor_seconds()

    def rate(self) -> float:
        """Return samples a second after the first poll's."""
        assert self.counted == self.wanted, f"{self.counted} of {self.wanted} samples"
        return (self.counted - self.first_count) / (self.last_at - self.first_at)

    def cpu(self) -> Processor:
        """Return the processor seconds per sample after the first poll's."""
        count = self.counted - self.first_count
        return Processor(
            (self.last_cpu.ours - self.first_cpu.ours) / count,
            (self.last_cpu.broker - self.first_cpu.broker) / count,
        )


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


def bare(settings: KafkaSettings, samples: int, per_record: int) -> Progress:
    """Measure a loop that polls and touches each value.

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
    return progress


def source_alone(settings: KafkaSettings, samples: int, per_record: int) -> Progress:
    """Measure the Kafka source without parsing and storing: its thread, queue and commits."""
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
    return progress


def watch(source: Source, progress: Progress, per_record: int) -> Source:
    """Have a source start a clock with the first records that it returns."""
    poll = source.poll

    def watched(timeout: float, max_records: int) -> Sequence[Record]:
        records = poll(timeout, max_records)
        progress.fetched(len(records) * per_record)
        return records

    source.poll = watched  # type: ignore[method-assign]
    return source


def ours(settings: KafkaSettings, samples: int, per_record: int) -> Progress:
    """Measure the daemon's intake into a new state."""
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
        topics = EmbeddedLog(Path(directory) / "topics.db", clock)
        source = open_source(STREAM, group, topics, clock, metrics, LogSettings(level="error"))
        state = SqlState.open(Path(directory), holdout_fraction={STREAM: 0.2}, clock=clock)
        intake = Intake(
            STREAM,
            source=watch(source, progress, per_record),
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
            topics.close()
    assert intake.failed is None, intake.failed
    return progress


def main() -> None:
    """Measure and report."""
    options = parse_options("intake", "Samples a second from Kafka into the state, against a bare poll loop.")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    size = QUICK if options.quick else FULL
    # As the daemon does after its start; the bare loop gains from it too.
    sys.setswitchinterval(SWITCH_SECONDS)
    keep_what_is_there()
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
        "batched_over_single_bare": median["arrow"] / median["single_bare"],
        "batched_floor_over_bare": floor_rate(median, "arrow") / median["arrow_bare"],
        "training_over_idle": median["single_training"] / median["single_idle"],
        "single_source_over_bare": median["single_source"] / median["single_bare"],
        "batched_source_over_bare": median["arrow_source"] / median["arrow_bare"],
        **{
            f"{name}_seconds_per_image" if name.endswith("_cpu") else f"{name}_images_per_second": value
            for name, value in median.items()
        },
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


def floor_rate(median: Mapping[str, float], name: str) -> float:
    """Return the images a second with nothing but fetching and the floor, shared out to the cores evenly."""
    floor = sum(median[f"{name}_floor_{part}_cpu"] for part in Floor._fields)
    fetching = median[f"{name}_bare_cpu"] + median[f"{name}_bare_broker_cpu"]
    return (os.cpu_count() or 1) / (fetching + floor)


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
    del items[TIMED_SAMPLES:]
    for _ in range(size.rounds):
        for name, (build, per_record) in formats.items():
            parts = parts_cpu(build(items))
            rates.setdefault(f"{name}_parse_cpu", []).append(parts.parse)
            rates.setdefault(f"{name}_store_cpu", []).append(parts.store)
            for part, seconds in parts.floor._asdict().items():
                rates.setdefault(f"{name}_floor_{part}_cpu", []).append(seconds)
            for kind, measured in (("_bare", bare), ("", ours), ("_source", source_alone)):
                progress = measured(settings[name], size.samples, per_record)
                used = progress.cpu()
                rates.setdefault(f"{name}{kind}", []).append(progress.rate())
                rates.setdefault(f"{name}{kind}_cpu", []).append(used.ours)
                rates.setdefault(f"{name}{kind}_broker_cpu", []).append(used.broker)
    with (
        tempfile.TemporaryDirectory() as directory,
        training(Path(directory), size.training_image_size) as train,
    ):
        for _ in range(size.rounds):
            for name, on in (("single_idle", False), ("single_training", True)):
                train(on)
                rates.setdefault(name, []).append(ours(settings["single"], size.samples, 1).rate())


if __name__ == "__main__":
    main()
