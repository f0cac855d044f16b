"""The topics beside the labelled one."""

from __future__ import annotations

from pydantic import Field, SecretStr

from daemon.settings.section import Section


class EventSettings(Section):
    """Events of the stream (sessions, gates, swaps) as CloudEvents, for other systems to follow."""

    enabled: bool = True
    """Whether events are written; without, none is kept either."""
    topic: str | None = None
    """Topic they are written to; the labelled topic's name with `.events` if empty."""
    transactions: bool = False
    """Whether events are written in Kafka transactions, so that a reader with `isolation.level` at
    `read_committed` sees each exactly once; otherwise a crash may repeat one, with the same id. Needs brokers
    from 2.7 on."""


class ControlTopicSettings(Section):
    """Commands to the stream from a topic.

    Whoever may write there commands the stream: restrict the topic by Kafka's ACLs, or set a secret, or both.
    """

    enabled: bool = False
    """Whether commands are read from the topic."""
    topic: str | None = None
    """Topic they are read from; the labelled topic's name with `.control` if empty."""
    secret: SecretStr | None = Field(default=None, min_length=16)
    """Secret of the commands' HMAC-SHA-256 signatures; empty: commands need no signature."""


class RequestTopicSettings(Section):
    """Inputs to classify from a topic, answered to another."""

    enabled: bool = False
    """Whether requests are read from the topic."""
    topic: str | None = None
    """Topic they are read from; the labelled topic's name with `.requests` if empty."""
    predictions_topic: str | None = None
    """Topic of the answers; the labelled topic's name with `.predictions` if empty."""
    at_once: int = Field(default=32, ge=1)
    """Requests of one partition that are queued together."""
    transactions: bool = False
    """Whether a prediction and the offset of its request become visible together, in a Kafka transaction, so
    that a reader with `isolation.level` at `read_committed` sees each exactly once; otherwise a crash may
    repeat one, with the same `idempotency-key`. Needs brokers from 2.7 on."""
    top: int = Field(default=5, ge=1, le=1000)
    """Classes named in each answer, best first."""
