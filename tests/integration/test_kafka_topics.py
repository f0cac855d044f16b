"""Making a stream's topics on Apache Kafka."""

from __future__ import annotations

import uuid

import pytest
from kafka import KafkaAdminClient

from daemon.errors import MessageRefused, SourceUnavailable
from daemon.sources.kafka.topics import TopicOutcome, create_topics, plan_topics
from tests.support.kafka_clients import kafka_settings

pytestmark = pytest.mark.integration


def test_topics_are_made_once_and_as_planned(kafka_address: str) -> None:
    """A second call changes nothing; partitions are those asked for, and 1 where order matters."""
    topic = f"photos-{uuid.uuid4().hex[:8]}"
    settings = kafka_settings(kafka_address, topic)
    plans = plan_topics(settings, partitions=3)
    assert set(create_topics(settings, plans, replication=1).values()) == {TopicOutcome.CREATED}
    assert set(create_topics(settings, plans, replication=1).values()) == {TopicOutcome.EXISTED}
    admin = KafkaAdminClient(bootstrap_servers=kafka_address)
    try:
        described = admin.describe_topics([plan.name for plan in plans])
    finally:
        admin.close()
    assert {found["name"]: len(found["partitions"]) for found in described} == {
        topic: 3,
        f"{topic}.dlq": 1,
        f"{topic}.control": 1,
        f"{topic}.events": 1,
        f"{topic}.requests": 3,
        f"{topic}.predictions": 3,
    }


def test_a_refused_topic_is_named_with_the_reason(kafka_address: str) -> None:
    """More copies than brokers is the usual mistake."""
    settings = kafka_settings(kafka_address, f"photos-{uuid.uuid4().hex[:8]}")
    with pytest.raises(MessageRefused, match=rf"{settings.topic}.*replication factor"):
        create_topics(settings, plan_topics(settings)[:1], replication=50)


def test_no_broker_is_said() -> None:
    """Where nothing listens, nothing is pretended."""
    settings = kafka_settings("127.0.0.1:9", "photos", connect_timeout_seconds=1.0)
    with pytest.raises(SourceUnavailable, match=r"topics not created: 127\.0\.0\.1:9"):
        create_topics(settings, plan_topics(settings), replication=1)
