"""The Kafka source and sink against Apache Kafka itself."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from daemon.errors import MessageRefused, OffsetGap, SourceUnavailable
from daemon.settings import KafkaSource as KafkaSettings
from daemon.sources.base import Message, Place, Record
from daemon.sources.kafka import KafkaSink, KafkaSource
from daemon.sources.kafka.topics import create_topics, plan_topics
from tests.support.kafka_broker import KafkaBroker
from tests.support.kafka_clients import (
    commit_as_group,
    committed,
    delete_before,
    drain,
    eventually,
    kafka_settings,
    new_source,
    numbers,
    produce,
)
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.integration

MakeTopic = Callable[..., str]


@contextmanager
def started(settings: KafkaSettings, stored: dict[Place, int] | None = None) -> Iterator[KafkaSource]:
    """Start a source that is closed whatever happens."""
    source = new_source(settings)
    try:
        source.start(stored or {})
        yield source
    finally:
        source.close()


def offsets(records: list[Record], partition: int = 0) -> list[int]:
    """Return the offsets of one partition's records, in order of arrival."""
    return [record.offset for record in records if record.partition == partition]


def test_everything_arrives_in_order_and_is_committed(kafka_address: str, make_topic: MakeTopic) -> None:
    """Without any offset a stream begins at the start; what intake commits, the group has."""
    topic = make_topic(2)
    produce(kafka_address, topic, numbers(0, 300), partition=0)
    produce(kafka_address, topic, numbers(0, 200), partition=1)
    with started(kafka_settings(kafka_address, topic)) as source:
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


# -- the group
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


# -- faults
def test_a_killed_broker_is_noticed_and_survived(broker: KafkaBroker, make_topic: MakeTopic) -> None:
    """Kill -9 and a restart: the outage shows, consuming resumes by itself, no record is lost or doubled."""
    topic = make_topic()
    produce(broker.address, topic, numbers(0, 20))
    with started(kafka_settings(broker.address, topic)) as source:
        records = drain(source, 20)
        broker.kill()
        try:
            assert eventually(lambda: not source.facts().up, 15)
            with pytest.raises(SourceUnavailable, match="has answered for"):
                source.poll(0.2, 10)
            # A commit while nobody answers must neither raise nor be forgotten.
            source.commit({Place(topic, 0): 20})
        finally:
            broker.start()
        produce(broker.address, topic, numbers(20, 30))
        records += drain(source, 10, seconds=60)
        assert offsets(records) == list(range(30))
        assert eventually(lambda: source.facts().up)
        assert eventually(lambda: committed(broker.address, topic) == 30)


def test_a_frozen_broker_is_noticed(broker: KafkaBroker, make_topic: MakeTopic) -> None:
    """A broker that keeps its connections and answers nothing is down as well."""
    topic = make_topic()
    produce(broker.address, topic, numbers(0, 5))
    with started(kafka_settings(broker.address, topic)) as source:
        records = drain(source, 5)
        broker.freeze()
        try:
            assert eventually(lambda: not source.facts().up, 15)
        finally:
            broker.thaw()
        produce(broker.address, topic, numbers(5, 9))
        records += drain(source, 4, seconds=60)
        assert offsets(records) == list(range(9))
        assert eventually(lambda: source.facts().up)


@pytest.mark.parametrize("fault", ["cut", "swallow"])
def test_a_network_cut_is_noticed_and_survived(
    proxy: TcpProxy, broker: KafkaBroker, make_topic: MakeTopic, fault: str
) -> None:
    """Cut off from a living broker, the source says so, and catches up when the network is back."""
    topic = make_topic()
    produce(broker.address, topic, numbers(0, 20))
    with started(kafka_settings(proxy.address, topic)) as source:
        records = drain(source, 20)
        getattr(proxy, fault)()
        assert eventually(lambda: not source.facts().up, 15)
        produce(broker.address, topic, numbers(20, 40))
        proxy.heal()
        records += drain(source, 20, seconds=60)
        assert offsets(records) == list(range(40))
        assert eventually(lambda: source.facts().up)
        assert eventually(lambda: committed(broker.address, topic) == 40)


def test_a_slow_network_is_not_an_outage(proxy: TcpProxy, broker: KafkaBroker, make_topic: MakeTopic) -> None:
    """Latency alone brings no false alarm."""
    topic = make_topic()
    produce(broker.address, topic, numbers(0, 20))
    with started(kafka_settings(proxy.address, topic)) as source:
        proxy.delay(0.2)
        assert offsets(drain(source, 20)) == list(range(20))
        assert not eventually(lambda: not source.facts().up, 5)


# -- the sink
def read_all(address: str, topic: str) -> list[tuple[bytes | None, bytes | None, dict[str, bytes]]]:
    """Return what a plain consumer finds in a topic."""
    consumer = KafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest", group_id=None)
    try:
        place = TopicPartition(topic, 0)
        consumer.assign([place])
        consumer.seek_to_beginning(place)
        end = consumer.end_offsets([place])[place]
        found = []
        while consumer.position(place) < end:
            records = consumer.poll(500).get(place, [])
            found += [(record.key, record.value, dict(record.headers)) for record in records]
        return found
    finally:
        consumer.close()


def test_what_the_sink_has_sent_is_there(kafka_address: str, make_topic: MakeTopic) -> None:
    """When `send` returns, anyone can read every message, with key and headers."""
    topic = make_topic()
    sink = KafkaSink(kafka_settings(kafka_address, topic))
    try:
        sink.send(topic, [Message(b"%d" % i, b"key", {"reason": b"bad"}, f"id-{i}") for i in range(100)])
        found = read_all(kafka_address, topic)
    finally:
        sink.close()
    assert [value for _, value, _ in found] == numbers(0, 100)
    assert found[7] == (b"key", b"7", {"reason": b"bad", "idempotency-key": b"id-7"})


def test_the_sink_refuses_what_the_topic_never_takes(kafka_address: str, make_topic: MakeTopic) -> None:
    """A message over the topic's limit is an error of its own, not an outage to retry."""
    topic = make_topic()
    sink = KafkaSink(kafka_settings(kafka_address, topic, compression="none"))
    try:
        with pytest.raises(MessageRefused, match=r"max\.message\.bytes"):
            sink.send(topic, [Message(bytes(3 * 2**20))])
        sink.send(topic, [Message(b"small")])
    finally:
        sink.close()
    assert [value for _, value, _ in read_all(kafka_address, topic)] == [b"small"]


def test_the_sink_says_when_nothing_is_confirmed(
    proxy: TcpProxy, broker: KafkaBroker, make_topic: MakeTopic
) -> None:
    """Cut off, `send` fails within its timeout; afterwards it works again, and nothing was doubled."""
    topic = make_topic()
    sink = KafkaSink(kafka_settings(proxy.address, topic))
    try:
        sink.send(topic, [Message(b"before")])
        proxy.cut()
        began = time.monotonic()
        with pytest.raises(SourceUnavailable, match="not confirmed"):
            sink.send(topic, [Message(b"meanwhile")])
        assert time.monotonic() - began < 15
        proxy.heal()
        sink.send(topic, [Message(b"after")])
    finally:
        sink.close()
    values = [value for _, value, _ in read_all(broker.address, topic)]
    assert values in ([b"before", b"after"], [b"before", b"meanwhile", b"after"])


def test_a_sink_serves_several_threads(kafka_address: str, make_topic: MakeTopic) -> None:
    """Dead letters, events and predictions come from different threads."""
    topic = make_topic()
    sink = KafkaSink(kafka_settings(kafka_address, topic))
    threads = [
        threading.Thread(target=sink.send, args=(topic, [Message(b"%d-%d" % (t, i)) for i in range(50)]))
        for t in range(4)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sink.close()
    assert len({value for _, value, _ in read_all(kafka_address, topic)}) == 200
