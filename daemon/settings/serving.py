"""The HTTP service."""

from __future__ import annotations

from pydantic import Field, SecretStr, model_validator

from daemon.settings.section import Section


class ServingSettings(Section):
    """The HTTP service."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and writes it to the state directory."""
    max_batch_size: int = Field(default=16, ge=1)
    """Most requests computed together."""
    max_batch_delay_seconds: float = Field(default=0.002, ge=0)
    """Longest that a request waits for others to join its batch."""
    max_queue: int = Field(default=256, ge=1)
    """Inputs that may wait to be computed; a request beyond them is answered 503."""
    max_inputs_per_request: int = Field(default=64, ge=1)
    """Most inputs that one request may hold, so that small payloads cannot fill the memory decoded."""
    request_timeout_seconds: float = Field(default=30.0, gt=0)
    """A request that waits longer is answered 504."""
    drain_seconds: float = Field(default=5.0, ge=0)
    """At a stop: how long requests already taken may still run."""
    max_resident_generations: int = Field(default=2, ge=1)
    """Generations kept in memory, the live one included, so that a rollback loads nothing."""
    token: SecretStr | None = None
    """Bearer token of the control endpoints; empty: they answer only on a loopback address."""

    @model_validator(mode="after")
    def _control_is_guarded(self) -> ServingSettings:
        if self.token is None and self.host not in {"127.0.0.1", "::1", "localhost"}:
            raise ValueError(
                f"host {self.host} is reachable from elsewhere: set serving.token "
                "(ACCRETE_SERVING__TOKEN, or a file in the secrets directory) for the control endpoints"
            )
        return self
