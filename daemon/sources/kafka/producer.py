"""The `kafka` sink: dead letters, events and predictions, confirmed before anything is committed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import structlog
from kafka import KafkaProducer
from kafka import errors as kafka_errors

from daemon import settings as config
from daemon.errors import MessageRefused, SourceUnavailable
from daemon.sources.base import IDEMPOTENCY_HEADER, Message
from daemon.sources.kafka.security import connection_options, describe_failure

log = structlog.get_logger(__name__)

MARGIN_SECONDS = 2.0

# No retry changes these; everything else may pass with time.
REFUSALS = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidTopicError,
    kafka_errors.AuthorizationError,
    kafka_errors.InvalidRecordError,
)


class KafkaSink:
    """Idempotent producer to any topic of the cluster; connects at the first message.

    Within one producer session the broker drops repeated sends. Beyond it (a restart between send and
    commit) a message may appear twice: its idempotency key travels as the header `idempotency-key`, by
    which a reader can tell.

    Args:
        settings: the cluster; the topic it names is not used.
    """

    def __init__(self, settings: config.KafkaSource) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._producer: KafkaProducer | None = None
        self._closed = False

    def send(self, topic: str, messages: Sequence[Message]) -> None:
        """Append messages and return when all in-sync replicas have them; one call at a time.

        Raises:
            SourceUnavailable: not all was confirmed within `delivery_timeout_seconds`.
            MessageRefused: the cluster will never take one of them; the others may have been appended.
            ValueError: a message has neither value nor key.
        """
        check_messages(topic, messages)
        # The margin lets the producer itself give a message up first, so that none is left under way.
        patience = self._settings.delivery_timeout_seconds + MARGIN_SECONDS
        # The lock is held to the end: a failure ends the producer, and with it only this call's messages.
        with self._lock:
            assert not self._closed, "a closed sink sends nothing"
            try:
                if self._producer is None:
                    self._producer = self._connect()
                deliver(self._producer, topic, messages, patience)
            except REFUSALS as error:
                self._discard()
                raise refused(topic, error) from error
            except (kafka_errors.KafkaError, OSError) as error:
                self._discard()
                said = describe_failure(self._settings, error)
                raise SourceUnavailable(
                    f"{len(messages)} messages to {topic} not confirmed: {said}"
                ) from error

    def close(self) -> None:
        """Release the connections; idempotent."""
        with self._lock:
            self._closed = True
            self._discard()

    def _discard(self) -> None:
        """End the producer: after a refusal it answers every send with that refusal, for ever."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            producer.close(timeout=MARGIN_SECONDS)
        except kafka_errors.KafkaError as error:
            log.warning("kafka.producer_close_failed", error=str(error))

    def _connect(self) -> KafkaProducer:
        return KafkaProducer(**producer_options(self._settings))


def producer_options(settings: config.KafkaSource) -> dict[str, Any]:
    """Return what every producer of the daemon has in common.

    Raises:
        ConfigError: a certificate, key or secret file cannot be used.
    """
    s = settings
    # Kafka's rule: a delivery must have room for one request and the linger before it.
    request = min(s.request_timeout_seconds, s.delivery_timeout_seconds - s.linger_seconds)
    delivery_ms = round(s.delivery_timeout_seconds * 1000)
    return connection_options(s) | {
        "request_timeout_ms": int(request * 1000),
        "delivery_timeout_ms": delivery_ms,
        "max_block_ms": delivery_ms,
        "acks": "all",
        "enable_idempotence": True,
        "compression_type": None if s.compression == "none" else s.compression,
        "linger_ms": round(s.linger_seconds * 1000),
        "batch_size": s.batch_bytes,
        "max_request_size": s.max_message_bytes,
        # Their names are derived, not typed; whether the cluster makes them is its own policy.
        "allow_auto_create_topics": True,
        "metrics_enabled": False,
    }


def check_messages(topic: str, messages: Sequence[Message]) -> None:
    """Refuse what no topic can hold.

    Raises:
        ValueError: a message has neither value nor key.
    """
    for message in messages:
        if message.value is None and message.key is None:
            raise ValueError(f"message to {topic}: value and key are both None: a tombstone needs its key")


def deliver(producer: KafkaProducer, topic: str, messages: Sequence[Message], patience: float) -> None:
    """Send messages and return when all in-sync replicas have them.

    Args:
        producer: an open one.
        topic: its name.
        messages: `check_messages` has seen them.
        patience: how long each wait may take, in seconds.

    Raises:
        KafkaError: one of them was not confirmed.
    """
    futures = [producer.send(topic, value=m.value, key=m.key, headers=_headers(m)) for m in messages]
    producer.flush(patience)
    for future in futures:
        future.get(timeout=patience)


def refused(topic: str, error: Exception) -> MessageRefused:
    """Say that the cluster will never take a message, and where to look."""
    return MessageRefused(
        f"topic {topic}: refused: {error}; check the topic's max.message.bytes, name and ACLs"
    )


def _headers(message: Message) -> list[tuple[str, bytes]]:
    headers = list(message.headers.items())
    if message.idempotency_key is not None:
        headers.append((IDEMPOTENCY_HEADER, message.idempotency_key.encode()))
    return headers
