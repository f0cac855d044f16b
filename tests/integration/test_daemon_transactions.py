"""A real daemon on Apache Kafka whose events and predictions are written in transactions."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from daemon.demo.images import CONTENT_TYPE, load_demo_images
from daemon.demo.process import DemoFailed
from daemon.messages.encode import Item, arrow_class_batch
from daemon.messages.predictions import TopicPrediction
from daemon.sources.base import Message, Place, Record, scan
from daemon.sources.kafka import KafkaSink
from daemon.sources.kafka.reader import KafkaReader
from daemon.sources.kafka.topics import create_topics, plan_topics
from daemon.sources.kafka.transactions import KafkaTransactions
from tests.support.kafka_clients import eventually, kafka_settings
from tests.support.running_daemon import STREAM, RunningDaemon, daemon_settings

pytestmark = pytest.mark.integration


def test_output_in_transactions_and_an_end_once_fenced(kafka_address: str, tmp_path: Path) -> None:
    """Everything comes once, killed or not; taken over by another, the daemon ends and says why."""
    cluster = kafka_settings(kafka_address, f"photos-{uuid.uuid4().hex[:8]}")
    create_topics(cluster, plan_topics(cluster), replication=1)
    settings = daemon_settings(
        tmp_path / "state",
        source=cluster.model_dump(mode="json", exclude_defaults=True) | {"kind": "kafka"},
        learner={"method": "ncm"},
        events={"transactions": True},
        requests={"enabled": True, "transactions": True},
    )
    images = load_demo_images(12, 1, seed=1).train
    sink, reader = KafkaSink(cluster), KafkaReader(cluster)

    def read(topic: str) -> list[Record]:
        return list(scan(reader, f"{cluster.topic}.{topic}"))

    def ask(request: bytes) -> None:
        image = next(iter(images.values()))[0]
        sink.send(f"{cluster.topic}.requests", [Message(image, headers={"id": request})])

    with RunningDaemon(tmp_path, settings) as daemon:
        for name, rows in list(images.items())[:2]:
            sink.send(cluster.topic, [arrow_class_batch(name, CONTENT_TYPE, [Item(p) for p in rows])])
        daemon.wait_live(1)
        ask(b"first")
        assert eventually(lambda: len(read("predictions")) == 1)
        assert eventually(lambda: len(read("events")) == 4)
        assert daemon.sample("accrete_transactions_total", outcome="committed") >= 2
        assert eventually(
            lambda: daemon.sample("accrete_topic_lag_records", kind="requests", partition="0") == 0
        )
        daemon.process.kill()
        ask(b"second")
        daemon.start()
        assert eventually(lambda: len(read("predictions")) == 2)
        answers = [TopicPrediction.model_validate_json(record.value or b"") for record in read("predictions")]
        assert [answer.request_id for answer in answers] == ["first", "second"]
        other = KafkaTransactions(cluster, f"{cluster.group_id}.{STREAM}.requests", count=lambda _: None)
        position = other.position(Place(f"{cluster.topic}.requests", 0))
        assert position is not None
        assert position.offset == 2
        ask(b"third")

        def ended() -> bool:
            try:
                daemon.process.check()
            except DemoFailed:
                return True
            return False

        assert eventually(ended)
        other.close()
    assert daemon.process.returncode == 1
    (failure,) = daemon.process.events("thread.failed")
    assert failure["thread"] == f"requests-{STREAM}"
    assert "another daemon has taken over" in failure["error"]
    assert len(read("predictions")) == 2
    sink.close()
    reader.close()
