"""Samples that intake stored and a session cannot decode: from the store to the dead letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from daemon.errors import DeadLetterReason
from daemon.messages.dead_letter import dead_letter_message, dead_letter_topic
from daemon.messages.encode import Item, raw_message
from daemon.messages.parse import Rejected
from daemon.metrics import Metrics
from daemon.sessions.job import UnreadableSample
from daemon.sources.base import Message, Record, Sink
from daemon.state.base import DeadSample, State, StoredSample

log = structlog.get_logger(__name__)


class Withdrawals:
    """Takes samples out of the store; used by one thread.

    Args:
        state: the store.
        sinks: of each stream's log.
        metrics: counts them.
    """

    def __init__(self, state: State, sinks: Mapping[str, Sink], metrics: Metrics) -> None:
        self._state, self._sinks, self._metrics = state, sinks, metrics

    def withdraw(self, stream: str, samples: Sequence[UnreadableSample]) -> None:
        """Make the dead letters durable, then take the samples out of the store in one transaction.

        Interrupted, it may be called again: the letters carry the key of the sample's place.

        Raises:
            SourceUnavailable: the log cannot be reached; the samples are still stored.
        """
        labels = {record.id: record.label for record in self._state.classes(stream)}
        reasons = {sample.id: sample.message for sample in samples}
        for stored in self._state.payloads(stream, list(reasons)):
            place, label = stored.place, labels[stored.class_id]
            reason = reasons[stored.id]
            log.warning(
                "session.dead_letter",
                stream=stream,
                topic=place.topic,
                partition=place.partition,
                offset=stored.offset,
                position=stored.position,
                reason=DeadLetterReason.BAD_PAYLOAD.value,
                message=reason,
            )
            self._sinks[stream].send(dead_letter_topic(place.topic), [_letter(stored, label, reason)])
        self._state.withdraw(stream, list(reasons))
        self._metrics.samples_withdrawn.labels(stream).inc(len(reasons))
        self._metrics.dead_letters.labels(stream, DeadLetterReason.BAD_PAYLOAD.value).inc(len(reasons))


def _letter(stored: StoredSample, label: str, reason: str) -> Message:
    """Build the letter as of a raw message, whatever message the sample came in."""
    raw = raw_message(label, stored.content_type, Item(stored.payload, stored.id))
    place = stored.place
    record = Record(place.topic, place.partition, stored.offset, raw.key, raw.value, raw.headers)
    dead = DeadSample(place, stored.offset, stored.position, DeadLetterReason.BAD_PAYLOAD, reason)
    return dead_letter_message(record, Rejected(dead, stored.payload, raw.headers))
