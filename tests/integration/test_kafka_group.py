"""The Kafka source as a member of its group, and under back-pressure, against Apache Kafka itself."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from kafka import KafkaAdminClient

from daemon.sources.base import Place, Record
from daemon.sources.kafka import KafkaSource
from tests.support.kafka_clients import (
    committed,
    drain,
    eventually,
    kafka_settings,
    numbers,
    offsets,
    produce,
    started,
)

pytestmark = pytest.mark.integration

MakeTopic = Callable[..., str]


def test_two_members_divide_the_records_between_them(kafka_address: str, make_topic: MakeTopic) -> None:
    """A second member joining and leaving costs no record and delivers none twice."""
    topic = make_topic(4)
    for partition in range(4):
        produce(kafka_address, topic, numbers(0, 50), partition)
    settings = kafka_settings(kafka_address, topic)
    seen: list[Record] = []
    with started(settings) as first:
        seen += drain(first, 200)
        with started(settings) as second:
            # The first gives partitions up only while it polls, which its own thread does.
            assert eventually(lambda: _assigned(second) == 2)
            for partition in range(4):
                produce(kafka_address, topic, numbers(50, 100), partition)
            both: list[Record] = []
            deadline = time.monotonic() + 30
            while len(both) < 200 and time.monotonic() < deadline:
                both += drain(first, 1, seconds=0.2) + drain(second, 1, seconds=0.2)
            seen += both
            assert first.facts().rebalances["revoked"] >= 1
            assert eventually(lambda: sum(committed(kafka_address, topic, p) or 0 for p in range(4)) == 400)
        for partition in range(4):
            produce(kafka_address, topic, numbers(100, 110), partition)
        seen += drain(first, 40)
    for partition in range(4):
        assert sorted(offsets(seen, partition)) == list(range(110))


def _assigned(source: KafkaSource) -> int:
    return len(source.lag())


def test_a_member_that_is_not_asked_stays_in_the_group(kafka_address: str, make_topic: MakeTopic) -> None:
    """Intake may be busy for longer than max.poll.interval: the broker's group never rebalances."""
    topic = make_topic()
    produce(kafka_address, topic, numbers(0, 30))
    settings = kafka_settings(kafka_address, topic, max_poll_interval_seconds=2.0, queue_records=10)
    with started(settings) as source:
        first = drain(source, 5)
        time.sleep(5.0)
        records = first + drain(source, 30 - len(first))
        assert offsets(records) == list(range(30))
        assert source.facts().rebalances == {"assigned": 1, "revoked": 0, "lost": 0}
        assert eventually(lambda: committed(kafka_address, topic) == 30)
        admin = KafkaAdminClient(bootstrap_servers=kafka_address)
        try:
            (group,) = admin.describe_groups([f"group-{topic}"]).values()
        finally:
            admin.close()
        assert "Stable" in str(group)


def test_a_static_member_returns_to_its_partitions(kafka_address: str, make_topic: MakeTopic) -> None:
    """With an instance id a restart within the session timeout moves nothing to the other member."""
    topic = make_topic(2)
    mine = kafka_settings(kafka_address, topic, group_instance_id="one", session_timeout_seconds=20.0)
    other = kafka_settings(kafka_address, topic, group_instance_id="two", session_timeout_seconds=20.0)
    with started(other) as second:
        with started(mine) as first:
            assert eventually(lambda: _assigned(first) == 1 and _assigned(second) == 1)
            held = set(first.lag())
            before = second.facts().rebalances
        with started(mine) as first:
            assert eventually(lambda: set(first.lag()) == held)
        assert second.facts().rebalances == before


# -- back-pressure
def test_a_full_queue_pauses_and_an_emptied_one_resumes(kafka_address: str, make_topic: MakeTopic) -> None:
    """Fetched-ahead records are bounded, lag stays visible, and nothing is lost or reordered."""
    topic = make_topic(2)
    for partition in range(2):
        produce(kafka_address, topic, numbers(0, 500), partition)
    with started(kafka_settings(kafka_address, topic, queue_records=50)) as source:
        assert eventually(lambda: source.facts().pause_reason == "backpressure")
        time.sleep(1.5)
        assert source.facts().queued_records < 100
        assert sum(lag.records for lag in source.lag().values()) == 1000
        assert source.facts().stalled == ()
        records = drain(source, 1000)
        assert offsets(records, 0) == list(range(500))
        assert offsets(records, 1) == list(range(500))
        assert eventually(lambda: source.facts().pause_reason is None)


def test_an_operator_pause_hands_nothing_over_and_keeps_membership(
    kafka_address: str, make_topic: MakeTopic
) -> None:
    """Paused, poll returns nothing; resumed, it goes on where it was."""
    topic = make_topic()
    with started(kafka_settings(kafka_address, topic)) as source:
        assert eventually(lambda: _assigned(source) == 1)
        source.pause()
        assert eventually(lambda: source.facts().pause_reason == "intake")
        produce(kafka_address, topic, numbers(0, 10))
        assert source.poll(1.0, 10) == []
        assert eventually(lambda: source.lag()[Place(topic, 0)].records == 10)
        source.resume()
        assert offsets(drain(source, 10)) == list(range(10))
        assert source.facts().rebalances["lost"] == 0
