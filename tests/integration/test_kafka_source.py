"""The Kafka source against Apache Kafka itself."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from daemon.errors import OffsetGap, SourceUnavailable
from daemon.sources.base import Place
from daemon.sources.kafka.topics import create_topics, plan_topics
from tests.support.kafka_clients import (
    commit_as_group,
    committed,
    delete_before,
    drain,
    eventually,
    kafka_settings,
    new_source,
    numbers,
    offsets,
    produce,
    started,
)

pytestmark = pytest.mark.integration

MakeTopic = Callable[..., str]


@pytest.mark.parametrize("process", [True, False])
def test_everything_arrives_in_order_and_is_committed(
    kafka_address: str, make_topic: MakeTopic, process: bool
) -> None:
    """Without any offset a stream begins at the start; what intake commits, the group has."""
    topic = make_topic(2)
    produce(kafka_address, topic, numbers(0, 300), partition=0)
    produce(kafka_address, topic, numbers(0, 200), partition=1)
    with started(kafka_settings(kafka_address, topic, process=process)) as source:
        records = drain(source, 500)
        assert offsets(records, 0) == list(range(300))
        assert offsets(records, 1) == list(range(200))
        assert [r.value for r in records if r.partition == 0] == numbers(0, 300)
        assert eventually(lambda: committed(kafka_address, topic, 0) == 300)
        assert eventually(lambda: committed(kafka_address, topic, 1) == 200)
        assert eventually(lambda: all(lag.records == 0 for lag in source.lag().values()))
        assert source.facts().positions == {Place(topic, 0): 300, Place(topic, 1): 200}


def test_a_commit_just_before_the_end_is_not_lost(kafka_address: str, make_topic: MakeTopic) -> None:
    """Closing commits what was stored last, before the group is left."""
    topic = make_topic()
    produce(kafka_address, topic, numbers(0, 10))
    with started(kafka_settings(kafka_address, topic)) as source:
        drain(source, 10, commit=False)
        source.commit({Place(topic, 0): 7})
    assert committed(kafka_address, topic) == 7


@pytest.mark.parametrize(("in_group", "in_store"), [(8, 3), (3, 8)])
def test_the_store_wins_over_the_group(
    kafka_address: str, make_topic: MakeTopic, in_group: int, in_store: int
) -> None:
    """On restart the offsets in the state decide, whether the group is ahead or behind."""
    topic = make_topic()
    produce(kafka_address, topic, numbers(0, 12))
    commit_as_group(kafka_address, topic, in_group)
    with started(kafka_settings(kafka_address, topic), {Place(topic, 0): in_store}) as source:
        assert offsets(drain(source, 12 - in_store)) == list(range(in_store, 12))


def test_without_a_stored_offset_the_group_decides(kafka_address: str, make_topic: MakeTopic) -> None:
    """A partition that the store has never seen continues where another member stopped."""
    topic = make_topic()
    produce(kafka_address, topic, numbers(0, 12))
    commit_as_group(kafka_address, topic, 5)
    with started(kafka_settings(kafka_address, topic)) as source:
        assert offsets(drain(source, 7)) == list(range(5, 12))


def test_a_missing_topic_is_said_and_may_come_later(kafka_address: str) -> None:
    """A mistyped topic refuses the start, names the remedy and is not created; the start may be repeated."""
    topic = f"late-{uuid.uuid4().hex[:8]}"
    settings = kafka_settings(kafka_address, topic)
    source = new_source(settings)
    try:
        for _ in range(2):
            with pytest.raises(SourceUnavailable, match=f"{topic} does not exist.*accrete topics create"):
                source.start({})
        create_topics(settings, plan_topics(settings), replication=1)
        produce(kafka_address, topic, numbers(0, 3))
        source.start({})
        assert offsets(drain(source, 3)) == [0, 1, 2]
    finally:
        source.close()


def test_no_broker_refuses_the_start(kafka_address: str) -> None:
    """Where nothing listens, the start fails within its timeout."""
    source = new_source(kafka_settings("127.0.0.1:9", "any", connect_timeout_seconds=1.0))
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:9"):
        source.start({})
    source.close()


# -- gaps
def test_a_gap_refuses_the_start(kafka_address: str, make_topic: MakeTopic) -> None:
    """Records that retention took before they were read are never passed over in silence."""
    topic = make_topic()
    produce(kafka_address, topic, numbers(0, 20))
    delete_before(kafka_address, topic, 12)
    source = new_source(kafka_settings(kafka_address, topic))
    with pytest.raises(OffsetGap, match="begins at 12: 2 records were removed"):
        source.start({Place(topic, 0): 10})
    source.close()


def test_a_gap_is_skipped_when_told_so(kafka_address: str, make_topic: MakeTopic) -> None:
    """With `on_gap: skip` consuming goes on at the log's start and the loss is counted."""
    topic = make_topic()
    produce(kafka_address, topic, numbers(0, 20))
    delete_before(kafka_address, topic, 12)
    with started(kafka_settings(kafka_address, topic, on_gap="skip"), {Place(topic, 0): 10}) as source:
        assert offsets(drain(source, 8)) == list(range(12, 20))
        assert source.facts().gap_records == 2


def test_an_offset_beyond_the_log_refuses_the_start(kafka_address: str, make_topic: MakeTopic) -> None:
    """A topic created anew is not taken for the old one."""
    topic = make_topic()
    produce(kafka_address, topic, numbers(0, 5))
    source = new_source(kafka_settings(kafka_address, topic))
    with pytest.raises(OffsetGap, match="log ends at 5"):
        source.start({Place(topic, 0): 9})
    source.close()


@pytest.mark.parametrize("policy", ["refuse", "skip"])
def test_retention_overtakes_a_running_stream(kafka_address: str, make_topic: MakeTopic, policy: str) -> None:
    """The group's own offset left the log: nothing jumps silently, as `earliest` would."""
    topic = make_topic()
    produce(kafka_address, topic, numbers(0, 20))
    commit_as_group(kafka_address, topic, 4)
    delete_before(kafka_address, topic, 9)
    with started(kafka_settings(kafka_address, topic, on_gap=policy)) as source:
        if policy == "refuse":
            with pytest.raises(OffsetGap, match="begins at 9: 5 records"):
                drain(source, 1)
            assert not source.facts().up
        else:
            assert offsets(drain(source, 11)) == list(range(9, 20))
            assert source.facts().gap_records == 5
