"""Forgetting the ids that nothing can come again for, a few at a time.

What is recognised when it comes again, and for how long:

- a sample, by its id: as long as the sample is stored, so for ever, until its class is forgotten;
- a command, by its id: for `retention.command_id_days`; an older one is refused, so that forgetting its id
  lets nothing be done twice;
- what the daemon writes (dead letters, events, predictions), by its idempotency key in the embedded log: for
  `retention.message_key_days`, since it is written again only by the start after a kill; on Kafka it is the
  readers who recognise it, by the header of that name;
- what is appended to an embedded labelled topic, by its idempotency key: for ever, like the samples.

An event leaves the outbox when it is published, and never before.
"""

from __future__ import annotations

from collections.abc import Sequence

from daemon.clock import Clock
from daemon.messages.dead_letter import dead_letter_topic
from daemon.metrics import ID_KINDS, Metrics
from daemon.owner_thread import OwnerThread
from daemon.settings import RetentionSettings, StreamSettings
from daemon.sources import events_topic, labelled_topic, request_topics
from daemon.sources.log import EmbeddedLog
from daemon.state.base import State

DAY_SECONDS = 86_400.0
# Deleting so many rows takes a few milliseconds: nobody who wants to write waits for longer.
IDS_AT_ONCE = 500
PAUSE_SECONDS = 0.1
TURN_SECONDS = 600.0

COMMAND, MESSAGE_KEY = ID_KINDS


def written_topics(stream: str, settings: StreamSettings) -> tuple[str, ...]:
    """Return the topics that only the daemon writes: a stream's dead letters, events and predictions."""
    letters = dead_letter_topic(labelled_topic(stream, settings.source))
    return letters, events_topic(stream, settings), request_topics(stream, settings)[1]


class Retention(OwnerThread):
    """Forgets ids whose time is over.

    The first turn forgets nothing: what was written just before a kill, however long ago that was, is
    written again soon after the start, and must be recognised.

    Args:
        settings: how long ids are remembered.
        written: topics of the embedded log that only the daemon writes.
        state, topics, metrics, clock: the parts it works with.
    """

    def __init__(
        self,
        settings: RetentionSettings,
        written: Sequence[str],
        *,
        state: State,
        topics: EmbeddedLog,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        super().__init__("retention", clock)
        self._settings, self._written = settings, tuple(written)
        self._state, self._topics, self._metrics = state, topics, metrics
        self._begun = False

    def work(self) -> float:
        """Forget some ids of each kind, in a transaction each."""
        if not self._begun:
            self._begun = True
            self._show()
            return TURN_SECONDS
        now = self._clock.now()
        commands = self._state.forget_commands(
            now - self._settings.command_id_days * DAY_SECONDS, IDS_AT_ONCE
        )
        before = now - self._settings.message_key_days * DAY_SECONDS
        keys = [self._topics.forget_keys(topic, before, IDS_AT_ONCE) for topic in self._written]
        self._metrics.forgotten_ids.labels(COMMAND).inc(commands)
        self._metrics.forgotten_ids.labels(MESSAGE_KEY).inc(sum(keys))
        if IDS_AT_ONCE in (commands, *keys):
            return PAUSE_SECONDS
        self._show()
        return TURN_SECONDS

    def _show(self) -> None:
        self._metrics.remembered_ids.labels(COMMAND).set(self._state.command_count())
        self._metrics.remembered_ids.labels(MESSAGE_KEY).set(self._topics.key_count())
