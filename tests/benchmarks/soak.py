"""A million records through a real daemon from a real Apache Kafka, and what becomes of its memory.

Another process produces raw messages over several partitions while the daemon stores them: small PNG images
with ids, 5 % of them sent a second time, some at once and some much later, always into another partition;
1 % cut short; 0.1 % tombstones. No session runs (no class ever has enough samples for the trigger), so that
nothing but intake can make the memory grow, and all samples stay unlearnt, which is the harder case for the
supervisor: it counts them.

`rss_growth_ratio` is the daemon's mean resident memory while it consumed the last tenth of the records over
that while it consumed the second tenth; in the first, caches and pools fill. At the end every record must be
accounted for: those stored, those counted as duplicates and the dead letters, which must lie in their topic.
"""

from __future__ import annotations

import io
import multiprocessing
import tempfile
import threading
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import psutil
from confluent_kafka import Producer
from kafka import KafkaConsumer, TopicPartition
from PIL import Image

from daemon.settings import KafkaSource as KafkaSettings
from daemon.sources.kafka.topics import TopicPlan, create_topics
from tests.benchmarks.frame import parse_options, report
from tests.support.kafka_broker import KafkaBroker
from tests.support.running_daemon import STREAM, RunningDaemon, daemon_settings

PARTITIONS = 4
CLASSES = 20
IMAGES = 1000
IMAGE_SIDE = 12
PATIENCE_SECONDS = 3600.0
NEVER = 1_000_000_000


@dataclass(frozen=True)
class Size:
    """How much is measured: records, and seconds between two looks at the daemon."""

    records: int
    look_seconds: float


QUICK = Size(records=20_000, look_seconds=0.1)
FULL = Size(records=1_000_000, look_seconds=1.0)


class Kind(Enum):
    """What a record of the stream is."""

    FRESH = "stored"
    AGAIN = "duplicate"
    BAD = "dead_lettered"
    TOMBSTONE = "tombstone"


def kind_and_sample(number: int) -> tuple[Kind, int]:
    """Return what the record of a number is, and the number of the sample in it."""
    if number % 1000 == 999:
        return Kind.TOMBSTONE, number
    if number % 100 == 50:
        return Kind.BAD, number
    if number % 25 == 7:
        # Five before lies a fresh one, in another partition.
        return Kind.AGAIN, number - 5
    if number % 100 == 33:
        # Half of the stream before, at a fresh one (2 mod 100) of a partition that is not this one's.
        return Kind.AGAIN, number // 200 * 100 + 2
    return Kind.FRESH, number


def expected(records: int) -> dict[Kind, int]:
    """Count the records of each kind."""
    counts = dict.fromkeys(Kind, 0)
    for number in range(records):
        counts[kind_and_sample(number)[0]] += 1
    return counts


def images(seed: int) -> list[bytes]:
    """Encode some small images of noise."""
    generator = np.random.default_rng(seed)
    encoded = []
    for _ in range(IMAGES):
        buffer = io.BytesIO()
        pixels = generator.integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded


def produce(address: str, topic: str, records: int, seed: int) -> None:
    """Produce the stream as fast as the broker takes it; runs in a process of its own."""
    payloads = images(seed)
    producer = Producer(
        {"bootstrap.servers": address, "linger.ms": 20, "enable.idempotence": True, "acks": "all"}
    )
    for number in range(records):
        kind, sample = kind_and_sample(number)
        payload = payloads[sample % IMAGES]
        if kind is Kind.BAD:
            payload = payload[: len(payload) // 2]
        headers: dict[str, str | bytes | None] = {
            "label": f"class-{sample % CLASSES}",
            "content-type": "image/png",
            "id": f"camera-{sample}",
        }
        while True:
            try:
                producer.produce(
                    topic,
                    value=None if kind is Kind.TOMBSTONE else payload,
                    key=b"k",
                    partition=number % PARTITIONS,
                    headers=headers,
                )
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    assert producer.flush(PATIENCE_SECONDS) == 0, "the broker did not confirm every record"


@dataclass(frozen=True)
class Look:
    """The daemon at one moment: records consumed, resident bytes, monotonic seconds."""

    consumed: int
    resident: int
    at: float


def reached(looks: list[Look], records: int, share: float) -> int:
    """Return the index of the first look at which a share of the records was consumed."""
    return next(i for i, look in enumerate(looks) if look.consumed >= share * records)


def mean_resident(looks: list[Look], records: int, first: float, last: float) -> float:
    """Return the mean over the looks from one share of the records to another, in bytes."""
    chosen = looks[reached(looks, records, first) : reached(looks, records, last) + 1]
    return sum(look.resident for look in chosen) / len(chosen)


def rate(looks: list[Look], records: int, first: float, last: float) -> float:
    """Return records a second from one share of them to another."""
    begin, end = looks[reached(looks, records, first)], looks[reached(looks, records, last)]
    return (end.consumed - begin.consumed) / max(end.at - begin.at, 1e-3)


def watch(daemon: RunningDaemon, size: Size) -> list[Look]:
    """Look at the daemon until it has consumed every record."""
    process, pause = psutil.Process(daemon.process.pid), threading.Event()
    looks: list[Look] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not looks or looks[-1].consumed < size.records:
        daemon.process.check()
        assert time.monotonic() < deadline, f"only {looks[-1].consumed} records within {PATIENCE_SECONDS:g} s"
        consumed = sum(daemon.metrics()["accrete_records_consumed_total"].values())
        looks.append(Look(int(consumed), process.memory_info().rss, time.monotonic()))
        pause.wait(size.look_seconds)
    return looks


def letters(address: str, topic: str) -> int:
    """Count the messages of a dead-letter topic."""
    consumer = KafkaConsumer(bootstrap_servers=address)
    try:
        places = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        return sum(consumer.end_offsets(places).values())
    finally:
        consumer.close()


def soak(directory: Path, address: str, size: Size, seed: int) -> dict[str, int | float]:
    """Run the daemon over one stream and return the figures."""
    source = {"kind": "kafka", "bootstrap_servers": [address], "topic": f"soak-{seed}"}
    topic = KafkaSettings.model_validate(source)
    create_topics(topic, [TopicPlan(topic.topic, "benchmark", partitions=PARTITIONS)], replication=1)
    trigger = {"min_samples_per_class": NEVER}
    settings = daemon_settings(directory / "state", source=source, trigger=trigger)
    with RunningDaemon(directory, settings) as daemon:
        producer = multiprocessing.get_context("spawn").Process(
            target=produce, args=(address, topic.topic, size.records, seed), daemon=True
        )
        producer.start()
        try:
            looks = watch(daemon, size)
            producer.join()
        finally:
            producer.kill()
        assert producer.exitcode == 0, "the producer failed"
        samples = {
            dict(labels)["outcome"]: int(value)
            for labels, value in daemon.metrics()["accrete_samples_total"].items()
            if dict(labels)["stream"] == STREAM
        }
        status = daemon.get("status")
    wanted = expected(size.records)
    found = {
        Kind.FRESH: samples["stored"],
        Kind.AGAIN: samples["duplicate"],
        Kind.BAD: samples["dead_lettered"],
    }
    assert found == {kind: wanted[kind] for kind in found}, f"{found} instead of {wanted}; status: {status}"
    in_topic = letters(address, f"{topic.topic}.dlq")
    assert in_topic == wanted[Kind.BAD], f"{in_topic} dead letters in their topic, not {wanted[Kind.BAD]}"
    early, late = mean_resident(looks, size.records, 0.1, 0.2), mean_resident(looks, size.records, 0.9, 1.0)
    # From the last look before anything came; the first poll's records count from there.
    first = max(reached(looks, size.records, 1 / size.records) - 1, 0)
    return {
        "records": size.records,
        "rss_growth_ratio": late / early,
        "rss_growth_bytes": late - early,
        "rss_bytes": late,
        "records_per_second": rate(looks[first:], size.records, 0.0, 1.0),
        "last_tenth_records_per_second": rate(looks, size.records, 0.9, 1.0),
        "second_tenth_records_per_second": rate(looks, size.records, 0.1, 0.2),
        "stored": samples["stored"],
        "duplicate": samples["duplicate"],
        "dead_lettered": samples["dead_lettered"],
        "tombstones": wanted[Kind.TOMBSTONE],
        "unaccounted": size.records - sum(samples.values()) - wanted[Kind.TOMBSTONE],
        "seconds": looks[-1].at - looks[first].at,
    }


def main() -> None:
    """Measure and report."""
    options = parse_options("soak", "A million records through a real daemon, its memory watched.")
    size = QUICK if options.quick else FULL
    figures: dict[str, int | float] = {}
    with tempfile.TemporaryDirectory() as directory:
        broker = KafkaBroker(Path(directory))
        broker.start()
        try:
            for seed in options.seeds:
                (place := Path(directory) / f"daemon-{seed}").mkdir()
                found = soak(place, broker.address, size, seed)
                # Of several seeds the worst growth counts.
                if not figures or found["rss_growth_ratio"] > figures["rss_growth_ratio"]:
                    figures = found
        finally:
            broker.stop()
    report(
        options,
        "soak",
        figures,
        [
            f"{PARTITIONS} partitions, {CLASSES} classes, images of {IMAGE_SIDE} x {IMAGE_SIDE} pixels",
            "no session runs; the daemon's resident memory includes torch and the backbone",
        ],
    )


if __name__ == "__main__":
    main()
