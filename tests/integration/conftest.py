"""Brokers and topics for the tests that talk to Apache Kafka itself."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator

import pytest
from kafka import KafkaAdminClient

from tests.support.kafka_broker import KafkaBroker, free_port
from tests.support.kafka_libs import NoBroker
from tests.support.tcp_proxy import TcpProxy


def without_broker(reason: str) -> None:
    """Skip, or fail where the tests' environment promises a broker."""
    if os.environ.get("ACCRETE_REQUIRE_KAFKA") == "1":
        pytest.fail(f"ACCRETE_REQUIRE_KAFKA=1, but: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def proxied_port() -> int:
    """Port where clients of the PROXIED listener are sent to; nothing listens until a proxy does."""
    return free_port()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory, proxied_port: int) -> Iterator[KafkaBroker]:
    """Run a broker that tests may kill, as long as they start it again."""
    if os.environ.get("ACCRETE_TEST_KAFKA"):
        pytest.skip("ACCRETE_TEST_KAFKA names a cluster that the tests must not kill")
    try:
        started = KafkaBroker(
            tmp_path_factory.mktemp("kafka"),
            extra_listeners={"PROXIED": "PLAINTEXT"},
            advertised={"PROXIED": f"127.0.0.1:{proxied_port}"},
        )
    except NoBroker as error:
        without_broker(str(error))
        raise
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def kafka_address(request: pytest.FixtureRequest) -> str:
    """Return a cluster's address: `ACCRETE_TEST_KAFKA`, else the tests' own broker."""
    given = os.environ.get("ACCRETE_TEST_KAFKA")
    if given:
        return given
    own: KafkaBroker = request.getfixturevalue("broker")
    return own.address


@pytest.fixture
def proxy(broker: KafkaBroker, proxied_port: int) -> Iterator[TcpProxy]:
    """Put a network that misbehaves on demand between a client of `proxy.address` and the broker."""
    network = TcpProxy(f"127.0.0.1:{broker.ports['PROXIED']}", proxied_port)
    yield network
    network.close()


@pytest.fixture
def make_topic(kafka_address: str) -> Callable[..., str]:
    """Create topics with names of their own."""

    def make(partitions: int = 1) -> str:
        admin = KafkaAdminClient(bootstrap_servers=kafka_address)
        name = f"test-{uuid.uuid4().hex[:12]}"
        try:
            topic = {"num_partitions": partitions, "replication_factor": 1}
            admin.create_topics({name: topic}, wait_for_metadata=True)
        finally:
            admin.close()
        return name

    return make
