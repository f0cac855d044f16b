"""Every message format, from producers and to consumers that are not ours, through a running daemon."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from daemon.clock import SystemClock
from daemon.demo.images import load_demo_images
from daemon.settings import KafkaSource
from daemon.sources.kafka.topics import create_topics, plan_topics
from daemon.state import SqlState
from tests.support.foreign_clients import (
    ConfluentClient,
    ConsoleProducer,
    ForeignConsumer,
    ForeignProducer,
    Found,
    KcatClient,
)
from tests.support.foreign_messages import FORMATS, picture
from tests.support.kafka_clients import eventually
from tests.support.kcat_binary import NoKcat, find_kcat
from tests.support.running_daemon import STREAM, RunningDaemon, daemon_settings

pytestmark = pytest.mark.integration

TOPIC = f"labelled-{uuid.uuid4().hex[:8]}"
PRODUCERS = ("kcat", "confluent", "console")
CONSUMERS = ("kcat", "confluent")
LINES_ONLY = (
    "the console producer reads lines of text: bytes that are no UTF-8, or hold a line break, do not fit"
)
# What a producer cannot express, and why.
CANNOT: Mapping[tuple[str, str], str] = {
    ("console", "raw image"): LINES_ONLY,
    ("console", "CloudEvent binary image"): LINES_ONLY,
    ("console", "Arrow class batch"): LINES_ONLY,
}


class Clients:
    """The clients by name, made when first asked for, so that a missing kcat skips its own tests alone."""

    def __init__(self, address: str, directory: Path) -> None:
        self._address, self._directory = address, directory

    def kcat(self) -> KcatClient:
        """Return kcat, or skip."""
        try:
            return KcatClient(find_kcat(), self._address, self._directory)
        except NoKcat as error:
            pytest.skip(str(error))

    def producer(self, name: str) -> ForeignProducer:
        """Return a producer."""
        if name == "console":
            return ConsoleProducer(self._address)
        return self.kcat() if name == "kcat" else ConfluentClient(self._address)

    def consumer(self, name: str) -> ForeignConsumer:
        """Return a consumer."""
        return self.kcat() if name == "kcat" else ConfluentClient(self._address)


@pytest.fixture(scope="module")
def clients(kafka_address: str, tmp_path_factory: pytest.TempPathFactory) -> Clients:
    """Return the clients."""
    return Clients(kafka_address, tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="module")
def daemon(kafka_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """Run a daemon on Kafka that has learnt two classes, all of whose messages confluent-kafka sent."""
    directory = tmp_path_factory.mktemp("daemon")
    source = KafkaSource(bootstrap_servers=[kafka_address], topic=TOPIC, group_id=TOPIC)
    create_topics(source, plan_topics(source), replication=1)
    settings = daemon_settings(
        directory / "state",
        source=source.model_dump(mode="json", exclude_defaults=True) | {"kind": "kafka"},
        learner={"method": "ncm"},
        # Only a flush starts a session.
        trigger={"quiet_seconds": 3600.0, "max_wait_seconds": 3600.0},
        requests={"enabled": True},
    )
    images = list(load_demo_images(12, 1, seed=1).train.items())[:2]
    client = ConfluentClient(kafka_address)
    with RunningDaemon(directory, settings) as daemon:
        for label, payloads in images:
            for n, payload in enumerate(payloads):
                headers = {
                    "label": label.encode(),
                    "content-type": b"image/png",
                    "id": f"{label}{n}".encode(),
                }
                client.produce(TOPIC, payload, headers)
        daemon.wait(lambda s: s["intake"]["samples"]["stored"] == 24)
        daemon.post("flush")
        daemon.wait_live(1)
        yield daemon
    assert daemon.process.returncode == 0


def stored(daemon: RunningDaemon, ids: list[str]) -> list[tuple[str, str, bytes]] | None:
    """Return label, content type and payload of samples in the daemon's store, None if one is not there."""
    state = SqlState.open(
        daemon.directory / "state", holdout_fraction={}, clock=SystemClock(), read_only=True
    )
    try:
        samples = list(state.payloads(STREAM, ids))
        # After the samples: the first one of a class comes with it.
        labels = {known.id: known.label for known in state.classes(STREAM)}
        return [(labels[sample.class_id], sample.content_type, sample.payload) for sample in samples]
    except ValueError:
        return None
    finally:
        state.close()


@pytest.mark.parametrize("producer", PRODUCERS)
@pytest.mark.parametrize("layout", FORMATS)
def test_a_format_arrives_from_a_foreign_producer(
    clients: Clients, daemon: RunningDaemon, producer: str, layout: str
) -> None:
    """The store holds every sample of the message: id, label, content type and payload, byte for byte."""
    if (producer, layout) in CANNOT:
        pytest.skip(CANNOT[producer, layout])
    label = f"{layout} of {producer}"
    sent = FORMATS[layout](label, f"{producer}-{layout.replace(' ', '-')}")
    clients.producer(producer).produce(TOPIC, sent.value, sent.headers)
    ids = list(sent.samples)
    assert eventually(lambda: stored(daemon, ids) is not None), daemon.process.tail(5)
    assert stored(daemon, ids) == [(label, sent.content_type, sent.samples[i]) for i in ids]


@pytest.mark.parametrize("producer", PRODUCERS)
def test_a_tombstone_from_a_foreign_producer(clients: Clients, daemon: RunningDaemon, producer: str) -> None:
    """A message without a value is counted and passed over; nothing is stored or dead-lettered."""
    name = "accrete_records_consumed_total"
    before = daemon.sample(name, outcome="tombstone")
    letters = daemon.sample(name, outcome="dead_lettered")
    clients.producer(producer).produce(TOPIC, None, {"label": b"gone"})
    assert eventually(lambda: daemon.sample(name, outcome="tombstone") == before + 1)
    assert daemon.sample(name, outcome="dead_lettered") == letters


def wait_for(consumer: ForeignConsumer, topic: str, wanted: Callable[[Found], bool]) -> Found:
    """Wait until a consumer finds a message."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for found in consumer.consume(topic):
            if wanted(found):
                return found
        time.sleep(0.2)
    raise AssertionError(f"{topic}: not found in {consumer.consume(topic)}")


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_dead_letter_is_read_by_a_foreign_consumer(
    clients: Clients, daemon: RunningDaemon, consumer: str
) -> None:
    """Its value is the original's, byte for byte; headers say why and where from, beside the original's."""
    reader = clients.consumer(consumer)
    damaged = b"\x89PNG\r\n\x1a\n\xff\xfe" + consumer.encode()
    headers = {"label": b"cat", "content-type": b"image/png", "camera": consumer.encode()}
    clients.producer("confluent").produce(TOPIC, damaged, headers)
    letter = wait_for(reader, f"{TOPIC}.dlq", lambda f: f.headers.get("camera") == consumer.encode())
    assert letter.value == damaged
    assert letter.headers["accrete-error-reason"] == b"bad_payload"
    assert letter.headers["accrete-source-topic"] == TOPIC.encode()
    assert letter.headers["label"] == b"cat"


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_events_are_read_by_a_foreign_consumer(
    clients: Clients, daemon: RunningDaemon, consumer: str
) -> None:
    """The promotion is a CloudEvent in binary mode: attributes in headers, JSON data."""
    event = wait_for(
        clients.consumer(consumer),
        f"{TOPIC}.events",
        lambda f: f.headers.get("ce_type") == b"accrete.session.promoted.v1",
    )
    assert event.headers["ce_specversion"] == b"1.0"
    assert event.headers["ce_source"] == f"/accrete/streams/{STREAM}".encode()
    assert event.headers["content-type"] == b"application/json"
    assert json.loads(event.value or b"")["session"] == 0


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("producer", ["kcat", "confluent"])
def test_a_request_is_answered_to_foreign_clients(
    clients: Clients, daemon: RunningDaemon, producer: str, consumer: str
) -> None:
    """An image in one topic becomes a prediction in another, with the request's id and the generation."""
    reader = clients.consumer(consumer)
    name = f"{producer}-{consumer}"
    clients.producer(producer).produce(f"{TOPIC}.requests", picture("a request"), {"id": name.encode()})

    def answers(found: Found) -> bool:
        return json.loads(found.value or b"")["request_id"] == name

    answer = json.loads(wait_for(reader, f"{TOPIC}.predictions", answers).value or b"")
    assert answer["prediction"]["label"] == daemon.classify(picture("a request"))["label"]
    assert answer["prediction"]["generation"] == daemon.get("status")["live"]["digest"]
