"""The Kafka source when its broker or the network to it fails, against Apache Kafka itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from daemon.errors import SourceUnavailable
from daemon.sources.base import Place
from daemon.sources.kafka.process import ProcessKafkaSource
from tests.support.kafka_broker import KafkaBroker
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
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.integration

MakeTopic = Callable[..., str]


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
    """A broker that keeps its connections and answers nothing is down as well; nothing stalls meanwhile."""
    topic = make_topic()
    produce(broker.address, topic, numbers(0, 5))

    def down() -> bool:
        assert source.stalled() == ()
        return not source.facts().up

    with started(kafka_settings(broker.address, topic, stall_seconds=0.5)) as source:
        records = drain(source, 5)
        broker.freeze()
        try:
            assert eventually(down, 15)
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


def test_a_killed_consumer_process_is_started_again(broker: KafkaBroker, make_topic: MakeTopic) -> None:
    """Kill -9 of the consumer alone: the outage is said, and no record is lost or doubled."""
    topic = make_topic()
    produce(broker.address, topic, numbers(0, 20))
    with started(kafka_settings(broker.address, topic)) as source:
        assert isinstance(source, ProcessKafkaSource)
        records = drain(source, 20)
        assert source.pid is not None
        os.kill(source.pid, signal.SIGKILL)
        with pytest.raises(SourceUnavailable, match="signal 9"):
            source.poll(0.2, 10)
        produce(broker.address, topic, numbers(20, 30))
        records += drain(source, 10, seconds=60)
        assert offsets(records) == list(range(30))
        assert eventually(lambda: committed(broker.address, topic) == 30)
