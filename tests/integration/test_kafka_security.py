"""Secured clusters: SASL and TLS with client certificates, against Apache Kafka itself."""

from __future__ import annotations

import base64
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from daemon.errors import ConfigError, SourceUnavailable
from daemon.settings import KafkaSecurity
from daemon.sources.base import Message
from daemon.sources.kafka import KafkaSink, KafkaSource
from daemon.sources.kafka.topics import create_topics, plan_topics
from tests.integration.conftest import without_broker
from tests.support.certificates import Authority
from tests.support.kafka_broker import KafkaBroker
from tests.support.kafka_clients import drain, kafka_settings, new_source
from tests.support.kafka_libs import NoBroker

pytestmark = pytest.mark.integration

MODULES = "org.apache.kafka.common.security"
SASL = "listener.name.sasl"
TLS = "listener.name.tls.ssl"


@dataclass(frozen=True)
class Secured:
    """A broker with a SASL and a TLS listener, and what a client needs for them."""

    sasl: str
    tls: str
    authority: Authority
    directory: Path


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Run a broker that lets only alice (PLAIN), bob (SCRAM), tokens and our certificates in."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed")
    directory = tmp_path_factory.mktemp("secured")
    authority = Authority(directory)
    certificate, key = authority.issue("broker")
    store = directory / "broker-store.pem"
    store.write_text(key.read_text() + certificate.read_text())
    settings = [
        f"{SASL}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,OAUTHBEARER",
        f'{SASL}.plain.sasl.jaas.config={MODULES}.plain.PlainLoginModule required user_alice="wonder";',
        f"{SASL}.scram-sha-256.sasl.jaas.config={MODULES}.scram.ScramLoginModule required;",
        f"{SASL}.oauthbearer.sasl.jaas.config={MODULES}.oauthbearer.OAuthBearerLoginModule required "
        'unsecuredLoginStringClaim_sub="broker";',
        f"{TLS}.keystore.type=PEM",
        f"{TLS}.keystore.location={store}",
        f"{TLS}.truststore.type=PEM",
        f"{TLS}.truststore.location={authority.certificate}",
        f"{TLS}.client.auth=required",
    ]
    try:
        broker = KafkaBroker(
            directory,
            extra_listeners={"SASL": "SASL_PLAINTEXT", "TLS": "SSL"},
            extra_settings=settings,
            extra_format=["--add-scram", "SCRAM-SHA-256=[name=bob,password=builder]"],
        )
    except NoBroker as error:
        without_broker(str(error))
        raise
    try:
        broker.start()
        ports = {name: f"127.0.0.1:{port}" for name, port in broker.ports.items()}
        yield Secured(ports["SASL"], ports["TLS"], authority, directory)
    finally:
        broker.stop()


def token(expires_in: float) -> str:
    """Make a bearer token that a broker without an authorisation server takes."""

    def part(claims: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")

    now = time.time()
    return f"{part({'alg': 'none'})}.{part({'sub': 'carol', 'iat': now, 'exp': now + expires_in})}."


def security(case: str, secured: Secured) -> tuple[str, KafkaSecurity]:
    """Return the listener and the settings of a case."""
    if case == "mutual TLS":
        certificate, key = secured.authority.issue(f"client-{uuid.uuid4().hex[:6]}", password="sesame")
        return secured.tls, KafkaSecurity(
            protocol="SSL",
            ca_file=secured.authority.certificate,
            certificate_file=certificate,
            key_file=key,
            key_password=SecretStr("sesame"),
        )
    secret = secured.directory / "secret"
    given: dict[str, object] = {"protocol": "SASL_PLAINTEXT", "mechanism": case}
    if case == "PLAIN":
        return secured.sasl, KafkaSecurity.model_validate(given | {"username": "alice", "password": "wonder"})
    if case == "SCRAM-SHA-256":
        secret.write_text("builder\n")
        return secured.sasl, KafkaSecurity.model_validate(
            given | {"username": "bob", "password_file": secret}
        )
    secret.write_text(token(3600) + "\n")
    return secured.sasl, KafkaSecurity.model_validate(given | {"token_file": secret})


@pytest.mark.parametrize("case", ["PLAIN", "SCRAM-SHA-256", "OAUTHBEARER", "mutual TLS"])
def test_records_go_through_a_secured_listener(secured: Secured, case: str) -> None:
    """Source, sink and topic creation all use the stream's one security section."""
    address, given = security(case, secured)
    settings = kafka_settings(address, f"safe-{uuid.uuid4().hex[:8]}", security=given)
    create_topics(settings, plan_topics(settings), replication=1)
    sink, source = KafkaSink(settings), new_source(settings)
    try:
        sink.send(settings.topic, [Message(b"secret")])
        source.start({})
        assert [record.value for record in drain(source, 1)] == [b"secret"]
    finally:
        source.close()
        sink.close()


def refusal(source: KafkaSource) -> str:
    """Return what a start that must fail says."""
    try:
        with pytest.raises(SourceUnavailable) as caught:
            source.start({})
    finally:
        source.close()
    return str(caught.value)


def test_a_wrong_password_is_refused_and_not_repeated_in_the_message(secured: Secured) -> None:
    """The error says that access was refused and where to look, and never the secret."""
    given = KafkaSecurity.model_validate(
        {"protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN", "username": "alice", "password": "looking-glass"}
    )
    settings = kafka_settings(secured.sasl, "any", security=given, connect_timeout_seconds=3.0)
    said = refusal(new_source(settings))
    assert "security" in said
    assert "looking-glass" not in said


def test_a_broker_of_an_unknown_authority_is_not_trusted(secured: Secured, tmp_path: Path) -> None:
    """TLS verifies the broker: another authority's certificate does not do."""
    certificate, key = secured.authority.issue("client-strict")
    stranger = Authority(tmp_path).certificate
    given = KafkaSecurity(protocol="SSL", ca_file=stranger, certificate_file=certificate, key_file=key)
    settings = kafka_settings(secured.tls, "any", security=given, connect_timeout_seconds=3.0)
    assert secured.tls in refusal(new_source(settings))


def test_a_wrong_key_password_is_a_mistake_in_the_settings(secured: Secured) -> None:
    """It is said at the start, naming the file, instead of asked for on the terminal."""
    certificate, key = secured.authority.issue("client-locked", password="sesame")
    given = KafkaSecurity(
        protocol="SSL", ca_file=secured.authority.certificate, certificate_file=certificate, key_file=key
    )
    source = new_source(kafka_settings(secured.tls, "any", security=given))
    with pytest.raises(ConfigError, match="client-locked"):
        source.start({})
    source.close()
