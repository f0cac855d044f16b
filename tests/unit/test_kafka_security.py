"""From the security settings to the client's options."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from daemon.errors import ConfigError
from daemon.settings import KafkaSource
from daemon.sources.kafka.security import connection_options

SASL = {"protocol": "SASL_SSL", "mechanism": "SCRAM-SHA-512", "username": "bob"}


def options(security: dict[str, object]) -> dict[str, object]:
    """Return the client's options under a security section."""
    given = {"bootstrap_servers": ["kafka:9092"], "topic": "photos", "security": security}
    return connection_options(KafkaSource.model_validate(given))


@pytest.mark.parametrize(
    ("security", "said"),
    [
        ({"protocol": "SASL_SSL"}, "mechanism None"),
        ({"mechanism": "PLAIN", "username": "u", "password": "p"}, "protocol PLAINTEXT"),
        (SASL, "either password or password_file"),
        (SASL | {"password": "p", "password_file": "f"}, "either password or password_file"),
        ({"protocol": "SASL_SSL", "mechanism": "PLAIN", "password": "p"}, "needs username"),
        ({"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER"}, "needs token_file"),
        ({"protocol": "SSL", "key_file": "k"}, "key_file without certificate_file"),
    ],
)
def test_half_a_security_section_is_refused(security: dict[str, object], said: str) -> None:
    """Each mistake is said by the settings, before any broker is asked."""
    with pytest.raises(ValidationError, match=said):
        options(security)


def test_a_password_comes_from_its_file_without_the_line_end(tmp_path: Path) -> None:
    """Secret files as Kubernetes and editors write them work alike."""
    file = tmp_path / "password"
    file.write_text("builder\n")
    assert options(SASL | {"password_file": file})["sasl_plain_password"] == "builder"


def test_a_token_is_read_again_at_each_connection(tmp_path: Path) -> None:
    """Tokens are short-lived; whatever renews them replaces the file."""
    file = tmp_path / "token"
    file.write_text("first")
    security = {"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER", "token_file": file}
    provider = options(security)["sasl_oauth_token_provider"]
    file.write_text("second")
    assert provider.token() == "second"  # type: ignore[attr-defined]


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_secret_that_is_not_there_is_a_mistake_in_the_settings(tmp_path: Path, content: str | None) -> None:
    """An absent or empty file is named, with its setting, at the start."""
    file = tmp_path / "password"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=r"security\.password_file: .*password"):
        options(SASL | {"password_file": file})


def test_an_unusable_authority_file_is_a_mistake_in_the_settings(tmp_path: Path) -> None:
    """Rubbish in place of a PEM file is refused, never ignored."""
    file = tmp_path / "ca.pem"
    file.write_text("rubbish")
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        options({"protocol": "SSL", "ca_file": file})


def test_a_heartbeat_must_fit_into_the_session() -> None:
    """Kafka's own rule of a third, said before the broker refuses or the group expels."""
    with pytest.raises(ValidationError, match="over a third"):
        KafkaSource(
            bootstrap_servers=["kafka:9092"], topic="photos", session_timeout_seconds=6, heartbeat_seconds=3
        )
