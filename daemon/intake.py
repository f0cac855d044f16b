"""From a source into the store: one thread per stream that never stops polling.

The order is what makes delivery exactly-once in effect: dead letters are durable in their topic
before the state's transaction moves the offsets past them, and the log is told only afterwards. Kill
the process anywhere and the next start reads again from the state's offsets; ids and idempotency keys
make the repetition harmless.

A transaction runs in a second thread: while SQLite and the disk are at work, this one polls and parses
what comes next. There is one at a time: the next begins when the previous one's outcome is known, and takes
in all that has been parsed meanwhile, so that a slow disk has fewer transactions to wait for.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import groupby

import structlog

from daemon.backoff import Backoff
from daemon.clock import Clock
from daemon.errors import LabelForgotten, SourceUnavailable
from daemon.messages.dead_letter import dead_letter_message, dead_letter_topic
from daemon.messages.parse import ParsedRecord, parse_record
from daemon.messages.refuse import without_labels
from daemon.metrics import Metrics
from daemon.outcomes import record_outcomes
from daemon.settings import LimitSettings
from daemon.sources.base import Message, Place, Record, Sink, Source
from daemon.state.base import State, StoreResult

log = structlog.get_logger(__name__)

# The group expels a silent consumer; half of "every second" leaves room for the store's transaction.
_POLL_SECONDS = 0.5
# Records of one poll. A Kafka source ends it earlier, by bytes.
_MAX_RECORDS = 2000
# Beyond either, what is parsed waits for the transaction under way, and nothing is polled.
_HELD_RECORDS = 4000
_HELD_BYTES = 16 * 2**20


@dataclass(frozen=True)
class _Storing:
    """A transaction that is under way."""

    parsed: Sequence[ParsedRecord]
    next_offsets: Mapping[Place, int]
    outcome: Future[StoreResult]


class Intake:
    """Owns the source of one stream and the thread that drains it.

    Attributes:
        heartbeat: `Clock.monotonic` when the thread last showed that it lives.
        failed: what ended the thread although nobody asked it to, None while all is well. Nothing
            has been skipped then: a restart reads the same records again.
    """

    def __init__(
        self,
        stream: str,
        *,
        source: Source,
        sink: Sink,
        state: State,
        metrics: Metrics,
        clock: Clock,
        limits: LimitSettings,
        default_content_type: str | None,
        content_types: frozenset[str],
        on_stored: Callable[[StoreResult], None],
        random_source: random.Random | None = None,
    ) -> None:
        self._stream = stream
        self._source = source
        self._sink = sink
        self._state = state
        self._metrics = metrics
        self._clock = clock
        self._limits = limits
        self._default_content_type = default_content_type
        self._content_types = content_types
        self._on_stored = on_stored
        self._backoff = Backoff(random_source or random.Random())
        self._stop = threading.Event()
        self._pause_wanted = threading.Event()
        self._paused = False
        self._last_poll = clock.monotonic()
        self._storing: _Storing | None = None
        self._parsed: list[ParsedRecord] = []
        self._parsed_bytes = 0
        self._store_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"store-{stream}")
        self._thread = threading.Thread(target=self._run, name=f"intake-{stream}", daemon=True)
        self._log = log.bind(stream=stream)
        self.heartbeat = clock.monotonic()
        self.failed: BaseException | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end after what it is doing; it polls no more."""
        self._stop.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread to end, at most that long (s); return whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def pause(self) -> None:
        """Take no records from the next poll on; the source is still polled, so the group keeps it."""
        self._pause_wanted.set()
        self._metrics.consumer_paused.labels(self._stream).set(1)

    def resume(self) -> None:
        """Take records again."""
        self._pause_wanted.clear()
        self._metrics.consumer_paused.labels(self._stream).set(0)

    def _run(self) -> None:
        try:
            self._start_source()
            while not self._stop.is_set():
                self._step()
            self._drain()
        except Exception as error:  # noqa: BLE001 - whatever it is, going on could skip a record
            self.failed = error
            self._metrics.source_up.labels(self._stream).set(0)
            self._log.exception("intake.failed", error=str(error))
        finally:
            self._close_source()

    def _start_source(self) -> None:
        while not self._stop.is_set():
            self._beat()
            try:
                self._source.start(self._state.next_offsets(self._stream))
            except SourceUnavailable as error:
                self._lost("start", error)
                self._rest(self._backoff.delay())
            else:
                self._found()
                return

    def _step(self) -> None:
        self._beat()
        self._apply_pause()
        try:
            # With a transaction under way only what is there already, so that its outcome waits for nothing.
            records = self._poll(0.0 if self._storing else _POLL_SECONDS)
        except SourceUnavailable as error:
            self._drain()
            self._lost("poll", error)
            self._rest(self._backoff.delay())
            return
        self._found()
        for record in records:
            self._parsed.append(self._parse(record))
            self._parsed_bytes += len(record.value or b"")
        held = len(self._parsed) >= _HELD_RECORDS or self._parsed_bytes >= _HELD_BYTES
        if not records or held or self._storing is None or self._storing.outcome.done():
            self._settle()
            self._take_in_parsed()
        self._observe_lag()

    def _take_in_parsed(self) -> None:
        parsed, self._parsed, self._parsed_bytes = self._parsed, [], 0
        if parsed:
            self._take_in(parsed)

    def _drain(self) -> None:
        """Store all that has been taken from the source."""
        self._settle()
        self._take_in_parsed()
        self._settle()

    def _take_in(self, parsed: Sequence[ParsedRecord]) -> None:
        """Make the dead letters durable and begin the transaction."""
        parsed = without_labels(parsed, self._state.refused_labels(self._stream))
        if not self._send_dead_letters(parsed):
            return
        next_offsets = _next_offsets(parsed)
        samples = [sample for item in parsed for sample in item.samples]
        dead = [rejected.dead for item in parsed for rejected in item.dead]
        outcome = self._store_thread.submit(self._state.store, self._stream, samples, dead, next_offsets)
        self._storing = _Storing(parsed, next_offsets, outcome)

    def _settle(self) -> None:
        """Wait for the transaction under way, if there is one; tell the log and count."""
        storing, self._storing = self._storing, None
        if storing is None:
            return
        while not wait((storing.outcome,), _POLL_SECONDS).done:
            self._beat()
        try:
            result = storing.outcome.result()
        except LabelForgotten:
            # An operator had a class forgotten since the labels were looked at: look again.
            self._take_in(storing.parsed)
            self._settle()
            return
        self._commit(storing.next_offsets)
        self._count(storing.parsed, result)
        try:
            self._on_stored(result)
        except Exception as error:  # noqa: BLE001 - the samples are stored; the listener's fault loses none
            self._log.exception("intake.listener_failed", error=str(error))

    def _parse(self, record: Record) -> ParsedRecord:
        return parse_record(
            record,
            self._limits,
            self._default_content_type,
            on_sample=self._breathe,
            accepted=self._content_types,
        )

    def _send_dead_letters(self, parsed: Sequence[ParsedRecord]) -> bool:
        """Make the dead letters durable, however long the log is away; False if told to stop first."""
        letters: dict[str, list[Message]] = {}
        for item in parsed:
            topic = dead_letter_topic(item.record.topic)
            for rejected in item.dead:
                self._log.warning(
                    "intake.dead_letter",
                    topic=item.record.topic,
                    partition=item.record.partition,
                    offset=item.record.offset,
                    position=rejected.dead.position,
                    reason=rejected.dead.reason.value,
                    message=rejected.dead.message,
                )
                letters.setdefault(topic, []).append(dead_letter_message(item.record, rejected))
        for topic, messages in letters.items():
            while True:
                try:
                    self._sink.send(topic, messages)
                    break
                except SourceUnavailable as error:
                    self._lost("dead_letters", error)
                if self._rest(self._backoff.delay(), self._poll_paused):
                    return False
            self._found()
        return True

    def _commit(self, next_offsets: Mapping[Place, int]) -> None:
        try:
            self._source.commit(next_offsets)
        except SourceUnavailable as error:
            # The state's offsets are what a restart goes by; the log is told with the next commit.
            self._lost("commit", error)

    def _count(self, parsed: Sequence[ParsedRecord], result: StoreResult) -> None:
        records, samples = record_outcomes(parsed, result)
        for outcome, count in records.items():
            self._metrics.records_consumed.labels(self._stream, outcome).inc(count)
        for outcome, count in samples.items():
            self._metrics.samples.labels(self._stream, outcome).inc(count)
        for item in parsed:
            for rejected in item.dead:
                self._metrics.dead_letters.labels(self._stream, rejected.dead.reason.value).inc()

    def _observe_lag(self) -> None:
        try:
            lags = self._source.lag()
        except SourceUnavailable as error:
            self._lost("lag", error)
            return
        for place, lag in lags.items():
            partition = str(place.partition)
            self._metrics.lag_records.labels(self._stream, partition).set(lag.records)
            self._metrics.lag_seconds.labels(self._stream, partition).set(lag.seconds)

    def _poll(self, timeout: float) -> Sequence[Record]:
        self._last_poll = self._clock.monotonic()
        records = self._source.poll(timeout, _MAX_RECORDS)
        self._metrics.last_poll.labels(self._stream).set(self._clock.now())
        return records

    def _breathe(self) -> None:
        """Stay in the group while one poll's records take long to decode."""
        if self._clock.monotonic() - self._last_poll >= _POLL_SECONDS:
            self._poll_paused()

    def _rest(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """Wait with a beating heart and do something every half second; return whether to stop."""
        end = self._clock.monotonic() + seconds
        while (remaining := end - self._clock.monotonic()) > 0:
            if self._clock.wait(self._stop, min(_POLL_SECONDS, remaining)):
                return True
            self._beat()
            meanwhile()
        return self._stop.is_set()

    def _poll_paused(self) -> None:
        """Poll so that the group keeps this member, without taking records before the pending ones."""
        self._beat()
        try:
            if not self._paused:
                self._source.pause()
                self._paused = True
            records = self._poll(0.0)
        except SourceUnavailable as error:
            self._lost("poll", error)
            return
        assert not records, "a paused source returned records"

    def _apply_pause(self) -> None:
        wanted = self._pause_wanted.is_set()
        if wanted and not self._paused:
            self._source.pause()
        elif self._paused and not wanted:
            self._source.resume()
        self._paused = wanted

    def _beat(self) -> None:
        self.heartbeat = self._clock.monotonic()

    def _lost(self, step: str, error: SourceUnavailable) -> None:
        self._metrics.source_up.labels(self._stream).set(0)
        self._log.warning("intake.source_unavailable", step=step, error=str(error))

    def _found(self) -> None:
        self._backoff.reset()
        self._metrics.source_up.labels(self._stream).set(1)

    def _close_source(self) -> None:
        self._store_thread.shutdown()
        try:
            self._source.close()
        except Exception as error:  # noqa: BLE001 - the thread ends anyway, and everything is stored
            self._log.warning("intake.close_failed", error=str(error))


def _next_offsets(parsed: Sequence[ParsedRecord]) -> dict[Place, int]:
    """Return the next offset wanted of each partition that the records are of."""
    next_offsets: dict[Place, int] = {}
    for _, run in groupby(parsed, key=lambda item: (item.record.topic, item.record.partition)):
        # They ascend; where a later run begins lower, the log is another one, and its offsets count.
        *_, last = run
        next_offsets[last.record.place] = last.record.offset + 1
    return next_offsets
