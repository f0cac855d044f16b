"""How to reach a secured Kafka cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import SecretStr, model_validator

from daemon.settings.section import Section


class KafkaSecurity(Section):
    """How to reach a secured cluster."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Kafka's security protocol."""
    ca_file: Path | None = None
    """PEM file with the certificate authority that signed the brokers' certificates; empty: the system's."""
    certificate_file: Path | None = None
    """PEM file with the client certificate, for mutual TLS."""
    key_file: Path | None = None
    """PEM file with the client certificate's private key."""
    key_password: SecretStr | None = None
    """Password of the private key."""
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    """SASL mechanism; required with a SASL protocol."""
    username: str | None = None
    """SASL user, for PLAIN and SCRAM."""
    password: SecretStr | None = None
    """SASL password, for PLAIN and SCRAM."""
    password_file: Path | None = None
    """File with the SASL password, instead of `password`; read at the start."""
    token_file: Path | None = None
    """File with the bearer token, for OAUTHBEARER; read again at each connection, so it may be renewed."""

    @model_validator(mode="after")
    def _complete(self) -> KafkaSecurity:
        if self.protocol.startswith("SASL") != (self.mechanism is not None):
            raise ValueError(f"protocol {self.protocol} does not go with mechanism {self.mechanism}")
        if self.mechanism == "OAUTHBEARER":
            if self.token_file is None:
                raise ValueError("mechanism OAUTHBEARER needs token_file")
        elif self.mechanism is not None:
            if self.username is None:
                raise ValueError(f"mechanism {self.mechanism} needs username")
            if (self.password is None) == (self.password_file is None):
                raise ValueError(f"mechanism {self.mechanism} needs either password or password_file")
        if self.key_file is not None and self.certificate_file is None:
            raise ValueError("key_file without certificate_file: set both for mutual TLS")
        return self
