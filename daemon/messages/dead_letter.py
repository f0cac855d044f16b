"""Dead letters as messages: the original bytes, and headers that say why and where from."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.messages.parse import Rejected
from daemon.sources.base import IDEMPOTENCY_HEADER, Message, Record

ERROR_REASON = "accrete-error-reason"
ERROR_MESSAGE = "accrete-error-message"
SOURCE_TOPIC = "accrete-source-topic"
SOURCE_PARTITION = "accrete-source-partition"
SOURCE_OFFSET = "accrete-source-offset"
SOURCE_POSITION = "accrete-source-position"
_ADDED = frozenset(
    {ERROR_REASON, ERROR_MESSAGE, SOURCE_TOPIC, SOURCE_PARTITION, SOURCE_OFFSET, SOURCE_POSITION}
)


@dataclass(frozen=True)
class DeadLetterFacts:
    """What a dead letter's headers say; empty where a header is missing.

    Attributes:
        reason, message: why it is here.
        source_topic: where it came from.
        place: that topic, partition, offset and, in a class batch, position, for people.
    """

    reason: str
    message: str
    source_topic: str
    place: str


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


def dead_letter_facts(letter: Record) -> DeadLetterFacts:
    """Read a dead letter's headers."""
    found = {name: letter.headers.get(name, b"").decode("utf-8", "replace") for name in _ADDED}
    place = "/".join(
        found[name]
        for name in (SOURCE_TOPIC, SOURCE_PARTITION, SOURCE_OFFSET, SOURCE_POSITION)
        if found[name]
    )
    return DeadLetterFacts(found[ERROR_REASON], found[ERROR_MESSAGE], found[SOURCE_TOPIC], place)


def replayed_message(letter: Record) -> Message:
    """Build the message that a dead letter was: its bytes, key and headers without those added to it.

    Its idempotency key is the letter's place, so that a log which can tell takes it once.
    """
    added = _ADDED | {IDEMPOTENCY_HEADER}
    headers = {name: content for name, content in letter.headers.items() if name not in added}
    key = f"replay/{letter.topic}/{letter.partition}/{letter.offset}"
    return Message(letter.value, key=letter.key, headers=headers, idempotency_key=key)
