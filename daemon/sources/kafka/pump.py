"""The thread that owns the consumer: it polls always, whatever intake or a session is doing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

import structlog
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors

from daemon.clock import Clock
from daemon.errors import ConfigError, OffsetGap, SourceUnavailable, StreamError
from daemon.settings import KafkaSource
from daemon.sources.base import Place, Record
from daemon.sources.kafka.handover import Handover
from daemon.sources.kafka.offsets import Gap, find_gaps
from daemon.sources.kafka.rebalance import Rebalance, as_committed
from daemon.sources.kafka.security import describe_failure

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.25
# Paused, the only work is to stay a member and to notice that intake has caught up.
PAUSED_POLL_SECONDS = 0.05
LOOK_SECONDS = 1.0
# Without an assignment the consumer is joining its group. kafka-python throws a join away that is answered
# while it waits for something else than its poll, and joins anew: with 0.4 s to the broker and a look every
# second it hardly ever got in. Every 5 s, a look costs at most one join in ten.
JOINING_LOOK_SECONDS = 5.0
RETRY_SECONDS = 0.5
CLOSE_SECONDS = 5.0
# How long a revoked partition may wait until intake has stored what it has of it; nothing can be polled
# meanwhile, so it is also at most this share of the poll interval.
REVOKE_SECONDS = 10.0
REVOKE_SHARE = 0.2


class Pump:
    """Polls the consumer, hands records over, commits, and looks at the log's ends.

    Args:
        settings: the topic and its cluster.
        connect: makes the consumer; called in the pump's own thread.
        handover: where records go and commits come from.
        clock: time.
        on_look: called after the log's ends were asked for, answered or not: about every second, less often
            while the consumer joins its group.
    """

    def __init__(
        self,
        settings: KafkaSource,
        connect: Callable[[], KafkaConsumer],
        handover: Handover,
        clock: Clock,
        on_look: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._connect = connect
        self._handover = handover
        self._clock = clock
        self._on_look = on_look
        self._stop = threading.Event()
        self._committing = False
        self._looked_at = 0.0
        self._contact = 0.0
        self._trouble = ""
        self.started: Future[None] = Future()
        self.failure: StreamError | None = None
        self.last_poll = 0.0
        self.commit_failures = 0
        self.gap_records = 0

    # -- asked from other threads
    def up(self) -> bool:
        """Tell whether a broker has answered lately."""
        return self._clock.monotonic() - self._contact <= self._settings.unreachable_seconds

    def why_down(self) -> str:
        """Describe the outage: who does not answer, for how long, and the last error."""
        silent = self._clock.monotonic() - self._contact
        servers = ", ".join(self._settings.bootstrap_servers)
        trouble = f" ({self._trouble})" if self._trouble else ""
        return f"no broker of {servers} has answered for {silent:.0f} s{trouble}; it resumes by itself"

    def stop(self) -> None:
        """Ask the thread to commit what is pending, leave the group and end."""
        self._stop.set()

    # -- the thread
    def run(self, stored: Mapping[Place, int]) -> None:
        """Consume until stopped; `started` tells when it subscribed, or why it did not.

        Args:
            stored: next offset wanted per partition of the topic.
        """
        try:
            consumer = self._connect()
        except ConfigError as error:
            self.started.set_exception(error)
            return
        except (kafka_errors.KafkaError, OSError) as error:
            self.started.set_exception(self._explain(error))
            return
        # Whatever else ended the loop, intake must not wait for records that will never come.
        ended: StreamError | None = StreamError("the consumer's thread has ended by a defect; see the log")
        try:
            self._subscribe(consumer, stored)
            self.started.set_result(None)
            while not self._stop.is_set():
                self._turn(consumer)
            self._flush(consumer)
            ended = None
        except (kafka_errors.KafkaError, StreamError, OSError) as error:
            ended = self._explain(error)
        finally:
            if ended is not None:
                self._fail(ended)
            self._close(consumer)

    def _subscribe(self, consumer: KafkaConsumer, stored: Mapping[Place, int]) -> None:
        topic = self._settings.topic
        partitions = consumer.partitions_for_topic(topic)
        if not partitions:
            raise SourceUnavailable(
                f"topic {topic} does not exist on {', '.join(self._settings.bootstrap_servers)}, or may not "
                "be described by this user: create it with `accrete topics create`, or grant DESCRIBE"
            )
        self._contact = self._clock.monotonic()
        known = {Place(topic, partition) for partition in partitions}
        wanted = {place: offset for place, offset in stored.items() if place.topic == topic}
        beginnings, ends = self._range(consumer, known & wanted.keys())
        for gap in find_gaps(wanted, beginnings, ends):
            wanted[gap.place] = self._skip(gap)
        self._handover.start({place: offset for place, offset in wanted.items() if place in known})
        budget = min(REVOKE_SECONDS, REVOKE_SHARE * self._settings.max_poll_interval_seconds)
        listener = Rebalance(self._handover, self._clock, budget)
        listener.attach(consumer)
        consumer.subscribe([topic], listener=listener)
        log.info("kafka.subscribed", topic=topic, group=self._settings.group_id, partitions=len(known))

    def _turn(self, consumer: KafkaConsumer) -> None:
        try:
            paused = self._apply_pause(consumer)
            self._confirm(consumer)
            self._commit(consumer)
            self._poll(consumer, PAUSED_POLL_SECONDS if paused else POLL_SECONDS)
            pause = LOOK_SECONDS if consumer.assignment() else JOINING_LOOK_SECONDS
            if self._clock.monotonic() - self._looked_at >= pause:
                try:
                    self._look(consumer)
                finally:
                    self._on_look()
        except kafka_errors.NoOffsetForPartitionError as error:
            self._go_to_start(consumer, error.args[0])
        except kafka_errors.OffsetOutOfRangeError as error:
            self._bridge(consumer, {Place(*tp): offset for tp, offset in error.args[0].items()})
        except kafka_errors.LogTruncationError as error:
            places = [Place(*tp) for tp in error.divergent_offsets]
            self._bridge(consumer, {place: self._handover.positions().get(place, 0) for place in places})
        except kafka_errors.FencedInstanceIdError as error:
            raise StreamError(
                f"another daemon of group {self._settings.group_id} uses group_instance_id "
                f"{self._settings.group_instance_id}: give each daemon its own"
            ) from error
        except kafka_errors.KafkaError as error:
            self._note(error)
            self._clock.wait(self._stop, RETRY_SECONDS)

    def _apply_pause(self, consumer: KafkaConsumer) -> bool:
        paused = self._handover.pause_reason() is not None
        assigned, held = consumer.assignment(), consumer.paused()
        if paused and assigned - held:
            consumer.pause(*assigned - held)
        elif not paused and held & assigned:
            consumer.resume(*held & assigned)
        return paused

    def _poll(self, consumer: KafkaConsumer, seconds: float) -> None:
        self.last_poll = self._clock.now()
        for tp, records in consumer.poll(timeout_ms=round(seconds * 1000)).items():
            self._contact = self._clock.monotonic()
            self._handover.put(Place(*tp), [as_record(r) for r in records])

    def _look(self, consumer: KafkaConsumer) -> None:
        """Ask for the ends of the log: it is the lag, and the only sign that a broker is there at all."""
        self._looked_at = self._clock.monotonic()
        assigned = consumer.assignment()
        asked = assigned or {TopicPartition(self._settings.topic, 0)}
        ends = consumer.end_offsets(asked, timeout_ms=round(LOOK_SECONDS * 1000))
        self._contact = self._clock.monotonic()
        self._trouble = ""
        positions = {
            Place(*tp): position
            for tp in assigned
            if (position := consumer.position(tp, timeout_ms=round(LOOK_SECONDS * 1000))) is not None
        }
        self._handover.observe(positions, {Place(*tp): end for tp, end in ends.items()})

    # -- offsets
    def _confirm(self, consumer: KafkaConsumer) -> None:
        """Bring the group up to the store: a partition without new records would seem to lag for ever."""
        for place in self._handover.unconfirmed():
            known = consumer.committed(TopicPartition(*place), timeout_ms=round(LOOK_SECONDS * 1000))
            self._handover.confirm(place, known)

    def _commit(self, consumer: KafkaConsumer) -> None:
        if self._committing:
            return
        commits = self._handover.take_commits()
        if commits:
            self._committing = True
            consumer.commit_async(as_committed(commits), callback=self._on_commit)

    def _on_commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], outcome: object) -> None:
        self._committing = False
        commits = {Place(*tp): offset.offset for tp, offset in offsets.items()}
        if isinstance(outcome, Exception):
            # Never fatal: the store has the offsets, and its word counts at the next start.
            self.commit_failures += 1
            self._handover.commit_failed(commits)
            log.info("kafka.commit_failed", error=str(outcome), partitions=len(commits))
        else:
            self._handover.committed(commits)

    def _flush(self, consumer: KafkaConsumer) -> None:
        commits = self._handover.take_commits()
        if not commits:
            return
        try:
            consumer.commit(as_committed(commits), timeout_ms=round(CLOSE_SECONDS * 1000))
        except kafka_errors.KafkaError as error:
            self.commit_failures += 1
            log.info("kafka.commit_failed", error=str(error), partitions=len(commits))

    def _go_to_start(self, consumer: KafkaConsumer, partitions: set[TopicPartition]) -> None:
        for tp in partitions:
            stored = self._handover.stored(Place(*tp))
            if stored is not None:
                consumer.seek(tp, stored)
            else:
                consumer.seek_to_beginning(tp)
        log.info("kafka.no_committed_offset", partitions=sorted(tp.partition for tp in partitions))

    def _bridge(self, consumer: KafkaConsumer, wanted: Mapping[Place, int]) -> None:
        beginnings, ends = self._range(consumer, wanted.keys())
        for place, offset in wanted.items():
            if place not in beginnings:
                continue
            target = self._skip(Gap(place, offset, beginnings[place], ends[place]))
            self._handover.restart(place, target)
            consumer.seek(TopicPartition(*place), target)

    def _range(
        self, consumer: KafkaConsumer, places: Iterable[Place]
    ) -> tuple[dict[Place, int], dict[Place, int]]:
        partitions = [TopicPartition(*place) for place in places]
        if not partitions:
            return {}, {}
        timeout_ms = round(self._settings.connect_timeout_seconds * 1000)
        beginnings = consumer.beginning_offsets(partitions, timeout_ms=timeout_ms)
        ends = consumer.end_offsets(partitions, timeout_ms=timeout_ms)
        return (
            {Place(*tp): offset for tp, offset in beginnings.items()},
            {Place(*tp): offset for tp, offset in ends.items()},
        )

    def _skip(self, gap: Gap) -> int:
        """Return where to go on after a gap.

        Raises:
            OffsetGap: the policy is to refuse.
        """
        if self._settings.on_gap == "refuse":
            raise OffsetGap(gap.describe())
        self.gap_records += gap.lost
        start = gap.beginning or 0
        log.warning(
            "kafka.gap_skipped",
            topic=gap.place.topic,
            partition=gap.place.partition,
            wanted=gap.wanted,
            resumed_at=start,
            lost=gap.lost,
            why=gap.describe(),
        )
        return start

    # -- trouble
    def _note(self, error: kafka_errors.KafkaError) -> None:
        described = str(self._explain(error))
        if described != self._trouble:
            self._trouble = described
            log.warning("kafka.trouble", error=described)

    def _explain(self, error: Exception) -> StreamError:
        if isinstance(error, StreamError):
            return error
        return SourceUnavailable(describe_failure(self._settings, error))

    def _fail(self, error: StreamError) -> None:
        if not self.started.done():
            self.started.set_exception(error)
            return
        self.failure = error
        log.error("kafka.stopped", error=str(error))
        self._handover.end()

    def _close(self, consumer: KafkaConsumer) -> None:
        try:
            consumer.close(timeout_ms=round(CLOSE_SECONDS * 1000))
        except kafka_errors.KafkaError as error:
            log.info("kafka.close_failed", error=str(error))


def as_record(record: Any) -> Record:
    """Return a consumer's record as ours."""
    return Record(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=record.key,
        value=record.value,
        headers={name: value or b"" for name, value in record.headers},
        timestamp=record.timestamp / 1000,
    )
