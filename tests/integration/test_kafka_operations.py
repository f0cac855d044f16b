"""What an operator does with a stream's topics on Apache Kafka."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.clock import SystemClock
from daemon.control_topic import ControlTopic
from daemon.errors import SourceUnavailable
from daemon.events.base import NoEvents
from daemon.events.publisher import EventPublisher
from daemon.messages.control import COMMANDS, command_message
from daemon.messages.dead_letter import dead_letter_facts, dead_letter_message
from daemon.messages.parse import parse_record
from daemon.settings import KafkaSource as KafkaSettings
from daemon.settings import LimitSettings
from daemon.sources.base import Message, scan
from daemon.sources.kafka import KafkaSink
from daemon.sources.kafka.reader import KafkaReader
from daemon.sources.kafka.topics import TopicPlan, create_topics
from tests.support.http_service import FakeControl
from tests.support.kafka_clients import commit_as_group, kafka_settings, produce
from tests.support.session_rig import STREAM, SessionRig
from tests.unit.test_cli import accrete, pictures

pytestmark = pytest.mark.integration

SECRET = "a secret of some length"


@pytest.fixture
def settings(kafka_address: str) -> KafkaSettings:
    """Return a stream's settings with a topic of its own, not made yet."""
    return kafka_settings(kafka_address, f"photos-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def reader(settings: KafkaSettings) -> Iterator[KafkaReader]:
    """Look into the cluster's topics."""
    opened = KafkaReader(settings)
    yield opened
    opened.close()


@pytest.fixture
def sink(settings: KafkaSettings) -> Iterator[KafkaSink]:
    """Produce to the cluster's topics."""
    opened = KafkaSink(settings)
    yield opened
    opened.close()


def configuration(tmp_path: Path, settings: KafkaSettings, **changes: Any) -> Path:
    """Write the configuration of a stream `s` from Kafka."""
    source = {
        "kind": "kafka",
        "bootstrap_servers": settings.bootstrap_servers,
        "topic": settings.topic,
        "group_id": settings.group_id,
        **changes,
    }
    path = tmp_path / "accrete.yaml"
    sections = {"state_directory": str(tmp_path / "state"), "streams": {STREAM: {"source": source}}}
    path.write_text(yaml.safe_dump(sections))
    return path


def cells(output: str) -> list[list[str]]:
    """Return the cells of a table's lines."""
    _, *rows = [line for line in output.splitlines() if "│" in line]
    return [[cell.strip() for cell in row.split("│")] for row in rows]


def test_create_produce_and_lag(tmp_path: Path, settings: KafkaSettings, reader: KafkaReader) -> None:
    """From nothing to samples in a topic; the lag is the group's where this machine has no state."""
    path = configuration(tmp_path, settings, compression="zstd")
    made = accrete("topics", "create", "--partitions", 2, "--replication", 1, "-c", path)
    assert made.exit_code == 0, made.output
    assert {row[0]: row[1] for row in cells(made.output)} == {
        f"{settings.topic}{end}": "created"
        for end in ("", ".dlq", ".control", ".events", ".requests", ".predictions")
    }
    pictures(tmp_path / "pictures", "cat", 7)
    for _ in range(2):
        sent = accrete("produce", tmp_path / "pictures", "-c", path)
        assert sent.exit_code == 0, sent.output
        assert f"7 samples sent to {settings.topic}" in sent.output
    samples = [
        sample
        for record in scan(reader, settings.topic)
        for sample in parse_record(record, LimitSettings(), None).samples
    ]
    assert len(samples) == 14
    assert len({sample.id for sample in samples}) == 7
    # One key, one partition: the label's.
    (busy,) = {sample.place.partition for sample in samples}
    commit_as_group(settings.bootstrap_servers[0], settings.topic, 10, busy)
    shown = accrete("lag", "-c", path)
    assert shown.exit_code == 0, shown.output
    by_partition = {row[0]: row for row in cells(shown.output)}
    assert by_partition[str(busy)][1:5] == ["14", "10", "group", "4"]
    assert 0 <= float(by_partition[str(busy)][5]) < 120
    assert by_partition[str(1 - busy)][1:5] == ["0", "none yet", "", "0"]
    assert not (tmp_path / "state").exists()


def test_compression_is_what_was_asked_for(tmp_path: Path, settings: KafkaSettings) -> None:
    """A topic that takes 100 kB takes 400 kB of the same words compressed, and refuses them as they are."""
    plan = TopicPlan(settings.topic, "small messages", configs={"max.message.bytes": "100000"})
    create_topics(settings, [plan], replication=1)
    text = tmp_path / "words" / "cat"
    text.mkdir(parents=True)
    for n in range(4):
        (text / f"{n}.txt").write_text(f"{n}" + "meow " * 20_000)
    refused = accrete(
        "produce", text, "--batch", 4, "-c", configuration(tmp_path, settings, compression="none")
    )
    assert refused.exit_code == 1
    assert "max.message.bytes" in refused.output
    sent = accrete("produce", text, "--batch", 4, "-c", configuration(tmp_path, settings, compression="gzip"))
    assert sent.exit_code == 0, sent.output


def test_dead_letters_go_back_where_they_came_from(
    tmp_path: Path, settings: KafkaSettings, reader: KafkaReader, sink: KafkaSink
) -> None:
    """List, show and replay: the bytes, key and headers that come back are those that were sent."""
    path = configuration(tmp_path, settings)
    accrete("topics", "create", "--replication", 1, "-c", path)
    bad = Message(b"no image", key=b"k", headers={"label": b"cat", "content-type": b"image/png"})
    sink.send(settings.topic, [bad])
    (record,) = scan(reader, settings.topic)
    (rejected,) = parse_record(record, LimitSettings(), None).dead
    sink.send(f"{settings.topic}.dlq", [dead_letter_message(record, rejected)])
    listed = accrete("dlq", "list", "-c", path)
    assert listed.exit_code == 0, listed.output
    assert cells(listed.output)[0][3:6] == ["bad_payload", f"{settings.topic}/0/0/0", "8"]
    assert "no image" in accrete("dlq", "show", 0, "-c", path).output
    replayed = accrete("dlq", "replay", "--all", "-c", path)
    assert replayed.exit_code == 0, replayed.output
    first, again = scan(reader, settings.topic)
    assert (again.value, again.key) == (first.value, first.key)
    added = dict(again.headers)
    assert added.pop("idempotency-key").decode() == f"replay/{settings.topic}.dlq/0/0"
    assert added == first.headers


def test_commands_from_a_topic(
    tmp_path: Path, settings: KafkaSettings, reader: KafkaReader, sink: KafkaSink
) -> None:
    """Signed ones are carried out once, over a restart too; others are dead letters."""
    topic, letters = f"{settings.topic}.control", f"{settings.topic}.dlq"
    control = FakeControl(STREAM)

    def owner(rig: SessionRig) -> ControlTopic:
        return ControlTopic(
            STREAM,
            topic,
            letters=letters,
            secret=SECRET,
            remembered_seconds=90 * 86_400.0,
            events=NoEvents(),
            reader=reader,
            control=control,
            sink=sink,
            state=rig.state,
            metrics=rig.metrics,
            clock=SystemClock(),
        )

    def pause(command_id: str, secret: str | None) -> Message:
        values = {"schema_version": 1, "id": command_id, "stream": STREAM, "command": "pause"}
        return command_message(COMMANDS.validate_python(values), secret)

    rig = SessionRig(tmp_path)
    commands = owner(rig)
    commands.turn()
    sink.send(topic, [pause("1", SECRET), pause("2", None), pause("1", SECRET), pause("3", SECRET)])
    commands.turn()
    assert control.calls == [("pause", None)] * 2
    (letter,) = scan(reader, letters)
    assert dead_letter_facts(letter).reason == "bad_signature"
    rig.close()
    again = SessionRig(tmp_path, rig.clock)
    sink.send(topic, [pause("4", SECRET), pause("3", SECRET)])
    owner(again).turn()
    assert len(control.calls) == 3
    again.close()


def test_events_reach_the_topic(
    tmp_path: Path, settings: KafkaSettings, reader: KafkaReader, sink: KafkaSink
) -> None:
    """A session's events are there in order, in CloudEvents' binary mode."""
    rig = SessionRig(tmp_path, events=True)
    rig.promote(0, "cat")
    topic = f"{settings.topic}.events"
    publisher = EventPublisher(
        STREAM, topic, state=rig.state, sink=sink, metrics=rig.metrics, clock=SystemClock()
    )
    publisher.turn()
    records = list(scan(reader, topic))
    assert [record.headers["ce_type"].decode() for record in records] == [
        "accrete.session.started.v1",
        "accrete.gate.judged.v1",
        "accrete.session.promoted.v1",
        "accrete.generation.published.v1",
    ]
    assert len({record.headers["ce_id"] for record in records}) == 4
    assert json.loads(records[0].value or b"")["new_classes"] == [{"id": 0, "label": "cat"}]
    assert rig.sample("accrete_events_pending") == 0
    rig.close()


def test_a_reader_pages_and_ends_at_the_end(settings: KafkaSettings, reader: KafkaReader) -> None:
    """Every record once, however many looks it takes; at the end there is nothing, at once."""
    address = settings.bootstrap_servers[0]
    assert reader.extents(settings.topic) == {}
    produce(address, settings.topic, [b"%d" % n for n in range(150)])
    assert [int(record.value or b"") for record in scan(reader, settings.topic)] == list(range(150))
    assert [record.offset for record in scan(reader, settings.topic, latest=2)] == [148, 149]
    assert list(reader.read(settings.topic, 0, 150, 10)) == []


def test_a_reader_says_that_nobody_answers() -> None:
    """The error names the brokers."""
    away = KafkaReader(kafka_settings("127.0.0.1:9", "t", connect_timeout_seconds=0.5))
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:9"):
        away.extents("t")
    away.close()
