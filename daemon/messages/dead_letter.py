"""Dead letters as messages: the original bytes, and headers that say why and where from."""

from __future__ import annotations

from daemon.messages.parse import Rejected
from daemon.sources.base import Message, Record

HEADER_PREFIX = "accrete-"
ERROR_REASON = "accrete-error-reason"
ERROR_MESSAGE = "accrete-error-message"
SOURCE_TOPIC = "accrete-source-topic"
SOURCE_PARTITION = "accrete-source-partition"
SOURCE_OFFSET = "accrete-source-offset"
SOURCE_POSITION = "accrete-source-position"


def dead_letter_topic(topic: str) -> str:
    """Return where the dead letters of a topic go."""
    return f"{topic}.dlq"


def dead_letter_message(record: Record, rejected: Rejected) -> Message:
    """Build the dead letter of a record, or of one sample of it.

    Its idempotency key is its place, so that a record read again after a crash leaves one letter.
    """
    dead = rejected.dead
    place = (dead.place.topic, str(dead.place.partition), str(dead.offset), str(dead.position))
    facts = {
        ERROR_REASON: dead.reason.value,
        ERROR_MESSAGE: dead.message,
        SOURCE_TOPIC: place[0],
        SOURCE_PARTITION: place[1],
        SOURCE_OFFSET: place[2],
        SOURCE_POSITION: place[3],
    }
    headers = dict(rejected.headers) | {
        name: text.encode("utf-8", "backslashreplace") for name, text in facts.items()
    }
    return Message(rejected.value, key=record.key, headers=headers, idempotency_key="/".join(place))
