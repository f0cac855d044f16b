"""From the outbox to the stream's topic: one thread per stream, which nobody waits for.

Delivery is at-least-once: an event leaves the outbox after the log has confirmed it, so a kill between
the two publishes it again, with the same id. The embedded log recognises it; on Kafka a reader does, by
`ce_id`. A log that is away delays events and nothing else; they wait in the state, over restarts too.
"""

from __future__ import annotations

import random
import threading

import structlog

from daemon.backoff import Backoff
from daemon.clock import Clock
from daemon.errors import StreamError
from daemon.messages.events import event_message
from daemon.metrics import Metrics
from daemon.sources.base import Sink
from daemon.state.base import State

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
EVENTS_AT_ONCE = 100


class EventPublisher:
    """Owns the thread that empties the outbox of one stream.

    Attributes:
        failed: what ended the thread although nobody asked it to, None while all is well.

    Args:
        stream: the stream's name.
        topic: where its events go.
        state, sink, metrics, clock: the parts it works with.
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
        random_source: random.Random | None = None,
    ) -> None:
        self._stream, self._topic = stream, topic
        self._state, self._sink, self._metrics, self._clock = state, sink, metrics, clock
        self._backoff = Backoff(random_source or random.Random())
        self._trouble = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"events-{stream}", daemon=True)
        self.failed: BaseException | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; what is not published stays in the outbox for the next start."""
        self._stop.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread to end, at most that long (s); return whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def turn(self) -> float:
        """Publish what is pending, and return how long to wait before the next turn, in seconds."""
        pending = self._state.pending_events(self._stream, EVENTS_AT_ONCE)
        if pending:
            messages = [
                event_message(self._stream, e.id, e.kind, e.subject, e.at, e.data)
                for e in (waiting.event for waiting in pending)
            ]
            try:
                self._sink.send(self._topic, messages)
            except StreamError as error:
                return self._wait_after(error)
            self._state.events_published(self._stream, [waiting.seq for waiting in pending])
            for waiting in pending:
                self._metrics.events_published.labels(self._stream, waiting.event.kind.value).inc()
            self._backoff.reset()
            self._trouble = ""
        self._show_pending()
        return 0.0 if len(pending) == EVENTS_AT_ONCE else POLL_SECONDS

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._clock.wait(self._stop, self.turn())
        except Exception as error:
            self.failed = error
            log.exception("events.failed", stream=self._stream)

    def _wait_after(self, error: StreamError) -> float:
        # A refusal may be mended from outside, a missing topic or right: it is tried again as well.
        self._show_pending()
        if str(error) != self._trouble:
            self._trouble = str(error)
            log.warning("events.not_published", stream=self._stream, topic=self._topic, error=str(error))
        return self._backoff.delay()

    def _show_pending(self) -> None:
        self._metrics.events_pending.labels(self._stream).set(self._state.pending_event_count(self._stream))
