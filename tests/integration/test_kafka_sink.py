"""The Kafka sink against Apache Kafka itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from kafka import KafkaConsumer, TopicPartition

from daemon.errors import MessageRefused, SourceUnavailable
from daemon.sources.base import Message
from daemon.sources.kafka import KafkaSink
from tests.support.kafka_broker import KafkaBroker
from tests.support.kafka_clients import (
    kafka_settings,
    numbers,
)
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.integration

MakeTopic = Callable[..., str]


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
