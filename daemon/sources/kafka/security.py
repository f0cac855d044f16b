"""Turn the connection settings into kafka-python options: one place for TLS and SASL."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from kafka import errors as kafka_errors
from kafka.net.sasl.oauth import AbstractTokenProvider

from daemon.errors import ConfigError
from daemon.settings import KafkaSecurity, KafkaSource

# The default of half a minute would be how long a source stays away after its broker is back.
RECONNECT_BACKOFF_MS = (100, 2000)

# The user or its rights are refused: an operator must act.
REFUSALS = (
    kafka_errors.AuthorizationError,
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
)


class FileTokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """Bearer token from a file that something else renews."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def token(self) -> str:
        """Return the token as the file has it now.

        Raises:
            ConfigError: the file cannot be read or is empty.
        """
        return _read_secret(self._path, "token_file")


def connection_options(settings: KafkaSource) -> dict[str, Any]:
    """Return what consumer, producer and admin client have in common.

    Raises:
        ConfigError: a certificate, key or secret file cannot be used.
    """
    security = settings.security
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": settings.client_id,
        "bootstrap_timeout_ms": round(settings.connect_timeout_seconds * 1000),
        "request_timeout_ms": round(settings.request_timeout_seconds * 1000),
        "reconnect_backoff_ms": RECONNECT_BACKOFF_MS[0],
        "reconnect_backoff_max_ms": RECONNECT_BACKOFF_MS[1],
        "security_protocol": security.protocol,
    }
    if security.protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(security)
    if security.mechanism == "OAUTHBEARER":
        assert security.token_file is not None, "settings check it"
        provider = FileTokenProvider(security.token_file)
        provider.token()
        options |= {"sasl_mechanism": security.mechanism, "sasl_oauth_token_provider": provider}
    elif security.mechanism is not None:
        options |= {
            "sasl_mechanism": security.mechanism,
            "sasl_plain_username": security.username,
            "sasl_plain_password": _password(security),
        }
    return options


def describe_failure(settings: KafkaSource, error: Exception) -> str:
    """Say which brokers failed us, how, and where to look."""
    said = f"{', '.join(settings.bootstrap_servers)}: {error}"
    if isinstance(error, REFUSALS):
        return f"{said}; access is refused: check the security section, and the user's ACLs"
    if settings.security.protocol != "PLAINTEXT" and isinstance(error, kafka_errors.KafkaTimeoutError):
        # The client tries again after a refusal until its time is up, and then tells of the time alone.
        return f"{said}; a refused password, token or certificate ends so as well: check the security section"
    return said


def _ssl_context(security: KafkaSecurity) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=security.ca_file)
        if security.certificate_file is not None:
            password = security.key_password.get_secret_value() if security.key_password else None
            # Without a callback or a string, OpenSSL would ask on the terminal and hang a daemon.
            context.load_cert_chain(security.certificate_file, security.key_file, password or "")
    except (OSError, ssl.SSLError) as error:
        files = [security.ca_file, security.certificate_file, security.key_file]
        named = ", ".join(str(path) for path in files if path is not None)
        raise ConfigError(
            f"security: {named or 'the system trust store'}: cannot be used for TLS: {error}; "
            "expected PEM files that this user may read, and the right key_password"
        ) from error
    return context


def _password(security: KafkaSecurity) -> str:
    if security.password_file is not None:
        return _read_secret(security.password_file, "password_file")
    assert security.password is not None, "settings check it"
    return security.password.get_secret_value()


def _read_secret(path: Path, field: str) -> str:
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"security.{field}: {path}: cannot be read: {error}") from error
    if not secret:
        raise ConfigError(f"security.{field}: {path}: is empty")
    return secret
