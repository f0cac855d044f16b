"""Requests from a topic, answered to another: one thread per stream.

Answers are at-least-once: the offset moves once they are confirmed, so a kill between the two answers
again, with the same idempotency key. While nothing can answer (no generation yet, the queue is full, the
log is away) requests wait in their topic, in order.

With transactions answers are exactly-once: they and the offset become visible together, in the cluster. The
state's offset follows, so that transactions may be switched off again; of the two, the one further on counts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError

import structlog

from cl_engine.errors import EngineError
from daemon.clock import Clock
from daemon.errors import NotReady, Overloaded, RequestTimeout, ServingError, StreamError, TooLarge
from daemon.messages.formats import CONTENT_TYPE
from daemon.messages.predictions import Answer, prediction_message
from daemon.metrics import Metrics
from daemon.owner_thread import OwnerThread
from daemon.serving.classify import describe
from daemon.serving.payloads import Payload
from daemon.serving.responses import classify_error, failure_text
from daemon.serving.service import Pending, ServingService
from daemon.settings import RequestTopicSettings
from daemon.sources.base import Message, Place, Reader, Record, Sink
from daemon.sources.transactions import Position, Transactions
from daemon.state.base import State
from daemon.topic_lag import show_lag

log = structlog.get_logger(__name__)

ENDPOINT = "topic"
KIND = "requests"
POLL_SECONDS = 0.1


class RequestTopic(OwnerThread):
    """Answers the requests of one stream's topic.

    Args:
        stream: the stream's name.
        requests, predictions: the topics.
        settings: how many at once, and how much is told of each.
        reader: of the log; owned by the thread from its start.
        service: what answers.
        sink, state, metrics, clock: the parts it works with.
        transactions: used instead of the sink, if given; owned by the thread from its start.
        random_source: jitter of the waits after a failure.
    """

    passing = (StreamError, NotReady, Overloaded, RequestTimeout)

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
        transactions: Transactions | None = None,
        random_source: random.Random | None = None,
    ) -> None:
        super().__init__(f"requests-{stream}", clock, random_source)
        self._stream, self._requests, self._predictions = stream, requests, predictions
        self._settings, self._reader, self._service = settings, reader, service
        self._sink, self._state, self._metrics = sink, state, metrics
        self._transactions = transactions

    def work(self) -> float:
        """Answer some requests of each partition."""
        answered = 0
        known = self._state.next_offsets(self._stream)
        for partition, extent in sorted(self._reader.extents(self._requests).items()):
            place = Place(self._requests, partition)
            # Requests that retention has removed, or of a log made anew, are answered to nobody.
            wanted = self._wanted(place, known.get(place, extent.start))
            offset = wanted if extent.start <= wanted <= extent.end else extent.start
            records = self._read(place, offset) if offset < extent.end and not self._stop.is_set() else ()
            show_lag(self._metrics, self._stream, KIND, place, extent.end - offset, records, self._clock)
            answered += self._answer_some(place, records)
        return 0.0 if answered else POLL_SECONDS

    def release(self) -> None:
        """Close the reader and the transactions."""
        self._reader.close()
        if self._transactions is not None:
            self._transactions.close()

    def _wanted(self, place: Place, stored: int) -> int:
        position = None if self._transactions is None else self._transactions.position(place)
        return stored if position is None else max(stored, position.offset)

    def _read(self, place: Place, offset: int) -> Sequence[Record]:
        return self._reader.read(place.topic, place.partition, offset, self._settings.at_once)

    def _answer_some(self, place: Place, records: Sequence[Record]) -> int:
        answers = self._answers(records)
        if answers:
            next_offset = records[len(answers) - 1].offset + 1
            if self._transactions is None:
                self._sink.send(self._predictions, answers)
            else:
                self._transactions.send(self._predictions, answers, place, Position(next_offset))
            self._state.move_offset(self._stream, place, next_offset)
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
        if content_type is None:
            return Payload(value, self._service.guess(self._stream, value))
        return Payload(value, content_type.decode("latin-1"))
