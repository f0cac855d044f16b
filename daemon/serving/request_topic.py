"""Requests from a topic, answered to another: one thread per stream.

Answers are at-least-once: the offset moves once they are confirmed, so a kill between the two answers
again, with the same idempotency key. While nothing can answer (no generation yet, the queue is full, the
log is away) requests wait in their topic, in order.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError

import structlog

from cl_engine.errors import EngineError
from daemon.backoff import Backoff
from daemon.clock import Clock
from daemon.errors import NotReady, Overloaded, RequestTimeout, ServingError, StreamError, TooLarge
from daemon.messages.formats import CONTENT_TYPE
from daemon.messages.predictions import Answer, prediction_message
from daemon.metrics import Metrics
from daemon.serving.classify import describe
from daemon.serving.payloads import Payload, sniff
from daemon.serving.responses import classify_error, failure_text
from daemon.serving.service import Pending, ServingService
from daemon.settings import RequestTopicSettings
from daemon.sources.base import Message, Place, Reader, Record, Sink
from daemon.state.base import State

log = structlog.get_logger(__name__)

ENDPOINT = "topic"
POLL_SECONDS = 0.1


class RequestTopic:
    """Owns the thread that answers the requests of one stream's topic.

    Attributes:
        failed: what ended the thread although nobody asked it to, None while all is well.

    Args:
        stream: the stream's name.
        requests, predictions: the topics.
        settings: how many at once, and how much is told of each.
        reader: of the log; owned by the thread from its start.
        service: what answers.
        sink, state, metrics, clock: the parts it works with.
        random_source: jitter of the waits after a failure.
    """

    def __init__(
        self,
        stream: str,
        requests: str,
        predictions: str,
        *,
        settings: RequestTopicSettings,
        reader: Reader,
        service: ServingService,
        sink: Sink,
        state: State,
        metrics: Metrics,
        clock: Clock,
        random_source: random.Random | None = None,
    ) -> None:
        self._stream, self._requests, self._predictions = stream, requests, predictions
        self._settings, self._reader, self._service = settings, reader, service
        self._sink, self._state, self._metrics, self._clock = sink, state, metrics, clock
        self._backoff = Backoff(random_source or random.Random())
        self._trouble = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"requests-{stream}", daemon=True)
        self.failed: BaseException | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end after the requests it answers."""
        self._stop.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread to end, at most that long (s); return whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def turn(self) -> float:
        """Answer some requests of each partition, and return how long to wait then, in seconds."""
        answered = 0
        try:
            known = self._state.next_offsets(self._stream)
            for partition, extent in sorted(self._reader.extents(self._requests).items()):
                place = Place(self._requests, partition)
                # Requests that retention has removed, or of a log made anew, are answered to nobody.
                wanted = known.get(place, extent.start)
                offset = wanted if extent.start <= wanted <= extent.end else extent.start
                if offset < extent.end and not self._stop.is_set():
                    answered += self._answer_some(place, offset)
        except (StreamError, NotReady, Overloaded, RequestTimeout) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.warning("requests.waiting", stream=self._stream, topic=self._requests, error=str(error))
            return self._backoff.delay()
        self._backoff.reset()
        self._trouble = ""
        return 0.0 if answered else POLL_SECONDS

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._clock.wait(self._stop, self.turn())
        except Exception as error:
            self.failed = error
            log.exception("requests.failed", stream=self._stream)
        finally:
            self._reader.close()

    def _answer_some(self, place: Place, offset: int) -> int:
        records = self._reader.read(place.topic, place.partition, offset, self._settings.at_once)
        answers = self._answers(records)
        if answers:
            self._sink.send(self._predictions, answers)
            self._state.move_offset(self._stream, place, records[len(answers) - 1].offset + 1)
        return len(answers)

    def _answers(self, records: Sequence[Record]) -> list[Message]:
        """Answer the records in order, up to the first one that must wait.

        Raises:
            NotReady, Overloaded, RequestTimeout: the first one must wait.
        """
        started = self._clock.monotonic()
        queued: list[Pending | Exception] = []
        for record in records:
            try:
                queued.append(self._service.submit(self._stream, [self._payload(record)]))
            except (NotReady, Overloaded):
                if not queued:
                    raise
                break
            except (ServingError, EngineError) as error:
                queued.append(error)
        messages: list[Message] = []
        for record, pending in zip(records, queued, strict=False):
            message, outcome = self._answer(record, pending)
            messages.append(message)
            self._metrics.requests.labels(self._stream, ENDPOINT, outcome).inc()
            duration = self._clock.monotonic() - started
            self._metrics.request_duration.labels(self._stream, ENDPOINT).observe(duration)
        return messages

    def _answer(self, record: Record, pending: Pending | Exception) -> tuple[Message, str]:
        try:
            answer = self._prediction(pending)
        except (RequestTimeout, Overloaded):
            raise
        except Exception as error:
            failure = classify_error(error)
            if failure.status == 500:
                log.exception("request.failed", stream=self._stream, endpoint=ENDPOINT, offset=record.offset)
            return prediction_message(record, self._stream, error=failure_text(error)), failure.outcome
        return prediction_message(record, self._stream, prediction=answer), "ok"

    def _prediction(self, pending: Pending | Exception) -> Answer:
        if isinstance(pending, Exception):
            raise pending
        try:
            prediction = pending.future.result(self._service.serving.request_timeout_seconds)
        except FutureTimeoutError as error:
            raise RequestTimeout("no prediction within serving.request_timeout_seconds") from error
        return Answer.model_validate(describe(pending.generation, prediction, self._settings.top))

    def _payload(self, record: Record) -> Payload:
        value = record.value or b""
        limit = self._service.limits.max_message_bytes
        if len(value) > limit:
            raise TooLarge(f"the request has {len(value)} bytes, the limit is {limit}")
        content_type = record.headers.get(CONTENT_TYPE)
        return Payload(value, sniff(value) if content_type is None else content_type.decode("latin-1"))
