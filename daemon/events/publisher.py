"""From the outbox to the stream's topic: one thread per stream, which nobody waits for.

Delivery is at-least-once: an event leaves the outbox after the log has confirmed it, so a kill between
the two publishes it again, with the same id. The embedded log recognises it; on Kafka a reader does, by
`ce_id`. A log that is away delays events and nothing else; they wait in the state, over restarts too.

With transactions it is exactly-once: the transaction that publishes events also notes the last one's id, as
a position in the cluster. What the note says is published leaves the outbox unpublished. It is the id that
counts and not its row number, which a state that was made anew gives again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from daemon.clock import Clock
from daemon.events.base import PendingEvent
from daemon.messages.events import event_message
from daemon.metrics import Metrics
from daemon.owner_thread import OwnerThread
from daemon.sources.base import Place, Sink
from daemon.sources.transactions import Position, Transactions
from daemon.state.base import State

POLL_SECONDS = 0.5
# May grow from release to release, not shrink: the last event noted must be among the first so many.
EVENTS_AT_ONCE = 100


class EventPublisher(OwnerThread):
    """Empties the outbox of one stream; what is not published stays there for the next start.

    Args:
        stream: the stream's name.
        topic: where its events go.
        state, sink, metrics, clock: the parts it works with.
        transactions: used instead of the sink, if given; owned by the thread from its start.
        random_source: jitter of the waits after a failure.
    """

    def __init__(
        self,
        stream: str,
        topic: str,
        *,
        state: State,
        sink: Sink,
        metrics: Metrics,
        clock: Clock,
        transactions: Transactions | None = None,
        random_source: random.Random | None = None,
    ) -> None:
        super().__init__(f"events-{stream}", clock, random_source)
        self._stream, self._topic = stream, topic
        self._state, self._sink, self._metrics = state, sink, metrics
        self._transactions = transactions
        # Where its positions are kept; the partition is as good as any other, and always there.
        self._noted_at = Place(topic, 0)

    def work(self) -> float:
        """Publish what is pending."""
        try:
            pending = self._state.pending_events(self._stream, EVENTS_AT_ONCE)
            unpublished = self._without_published(pending)
            if unpublished:
                self._publish(unpublished)
        finally:
            self._show_pending()
        return 0.0 if len(pending) == EVENTS_AT_ONCE else POLL_SECONDS

    def release(self) -> None:
        """Close the transactions."""
        if self._transactions is not None:
            self._transactions.close()

    def _without_published(self, pending: Sequence[PendingEvent]) -> Sequence[PendingEvent]:
        """Take out of the outbox what a transaction has published before a crash, and return the rest."""
        if self._transactions is None or not pending:
            return pending
        position = self._transactions.position(self._noted_at)
        ids = [waiting.event.id for waiting in pending]
        if position is None or position.note not in ids:
            return pending
        end = ids.index(position.note) + 1
        self._state.events_published(self._stream, [waiting.seq for waiting in pending[:end]])
        return pending[end:]

    def _publish(self, pending: Sequence[PendingEvent]) -> None:
        messages = [
            event_message(self._stream, e.id, e.kind, e.subject, e.at, e.data)
            for e in (waiting.event for waiting in pending)
        ]
        # A refusal may be mended from outside, a missing topic or right: it is tried again as well.
        if self._transactions is None:
            self._sink.send(self._topic, messages)
        else:
            last = pending[-1]
            self._transactions.send(
                self._topic, messages, self._noted_at, Position(last.seq + 1, last.event.id)
            )
        self._state.events_published(self._stream, [waiting.seq for waiting in pending])
        for waiting in pending:
            self._metrics.events_published.labels(self._stream, waiting.event.kind.value).inc()

    def _show_pending(self) -> None:
        self._metrics.events_pending.labels(self._stream).set(self._state.pending_event_count(self._stream))
