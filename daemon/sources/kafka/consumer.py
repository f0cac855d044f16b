"""The `kafka` source: a stream's topic on an Apache Kafka cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError

from kafka import KafkaConsumer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from daemon import settings as config
from daemon.clock import Clock
from daemon.errors import DaemonError, SourceUnavailable
from daemon.sources.base import Lag, Place, Record
from daemon.sources.kafka.facts import KafkaFacts
from daemon.sources.kafka.handover import Handover
from daemon.sources.kafka.pump import CLOSE_SECONDS, Pump
from daemon.sources.kafka.security import connection_options

MAX_POLL_RECORDS = 500
ASSIGNORS = {
    "cooperative-sticky": CooperativeStickyAssignor,
    "range": RangePartitionAssignor,
    "roundrobin": RoundRobinPartitionAssignor,
}


class KafkaSource:
    """Consumer of one topic, polled by a thread of its own.

    Delivery: a record is handed over once per object, in offset order within its partition. The offsets
    given to `start` win over the group's; after this object's first commit in a partition, the group's
    offset tells where another member of the group got to, and what this one has had is left out.

    Args:
        settings: the topic and its cluster.
        clock: time.
        on_facts: told about every second, from the consumer's thread, so it must not wait.
    """

    def __init__(
        self,
        settings: config.KafkaSource,
        clock: Clock,
        on_facts: Callable[[KafkaFacts], None] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._on_facts = on_facts
        self._thread: threading.Thread | None = None
        self._renew()

    def start(self, stored: Mapping[Place, int]) -> None:
        """Connect, check the stored offsets against the log, and join the group; may be tried again.

        Args:
            stored: next offset wanted per partition; other topics' are ignored.

        Raises:
            OffsetGap: a stored offset is no longer in the log, and `on_gap` is `refuse`.
            SourceUnavailable: no broker answers, access is refused, or the topic does not exist.
            ConfigError: a certificate or secret file cannot be used.
        """
        assert self._thread is None, "a source that has started is not started again"
        self._renew()
        name = f"kafka-{self._settings.topic}"
        self._thread = threading.Thread(target=self._pump.run, args=(dict(stored),), name=name, daemon=True)
        self._thread.start()
        # Connecting, the topic's metadata, and the two ends of the log each have this long.
        patience = 4 * self._settings.connect_timeout_seconds
        try:
            self._pump.started.result(timeout=patience)
        except FutureTimeoutError as error:
            self._end()
            servers = ", ".join(self._settings.bootstrap_servers)
            raise SourceUnavailable(f"{servers}: connected, but no answer within {patience:.0f} s") from error
        except DaemonError:
            self._end()
            raise

    def poll(self, timeout: float, max_records: int) -> Sequence[Record]:
        """Return the next records; empty after the timeout (s).

        Raises:
            OffsetGap: retention has overtaken the stream, and `on_gap` is `refuse`; again at each call.
            SourceUnavailable: nothing is left to hand over and no broker has answered for
                `unreachable_seconds`; raised after the timeout, and consuming resumes by itself.
            StreamError: another daemon has taken this one's `group_instance_id`; again at each call.
        """
        records = self._handover.take(timeout, max_records)
        if records:
            return records
        if self._pump.failure is not None:
            raise self._pump.failure
        if not self._pump.up():
            raise SourceUnavailable(self._pump.why_down())
        return []

    def commit(self, next_offsets: Mapping[Place, int]) -> None:
        """Note what is stored durably; the consumer's thread tells the group, and failing is harmless."""
        self._handover.commit(next_offsets)

    def pause(self) -> None:
        """Stop handing over and fetching; membership is kept."""
        self._handover.set_pause(True)

    def resume(self) -> None:
        """Hand over again."""
        self._handover.set_pause(False)

    def lag(self) -> Mapping[Place, Lag]:
        """Return the lag per assigned partition, as of the last second's look; asks no broker."""
        return self._handover.lag()

    def stalled(self) -> Sequence[Place]:
        """List partitions with lag that have given nothing for `stall_seconds`; asks no broker."""
        return self.facts().stalled

    def facts(self) -> KafkaFacts:
        """Return what the daemon exports; asks no broker."""
        records, size, stale, rebalances = self._handover.counts()
        up = self._pump.failure is None and self._pump.up()
        return KafkaFacts(
            up=up,
            pause_reason=self._handover.pause_reason(),
            last_poll=self._pump.last_poll,
            positions=self._handover.positions(),
            stalled=self._handover.stalled(self._settings.stall_seconds) if up else (),
            rebalances=rebalances,
            queued_records=records,
            queued_bytes=size,
            stale_records=stale,
            commit_failures=self._pump.commit_failures,
            gap_records=self._pump.gap_records,
        )

    def close(self) -> None:
        """Commit what is pending, leave the group (a static member stays) and end the thread; idempotent."""
        self._end()

    def _renew(self) -> None:
        self._handover = Handover(self._settings.queue_records, self._settings.queue_bytes, self._clock)
        self._pump = Pump(self._settings, self._connect, self._handover, self._clock, self._tell)

    def _tell(self) -> None:
        if self._on_facts is not None:
            self._on_facts(self.facts())

    def _end(self) -> None:
        # In this order: nobody waits any more for what intake will not store.
        self._handover.end()
        self._pump.stop()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout=4 * CLOSE_SECONDS)

    def _connect(self) -> KafkaConsumer:
        s = self._settings
        return KafkaConsumer(
            **connection_options(s),
            group_id=s.group_id,
            group_instance_id=s.group_instance_id,
            partition_assignment_strategy=(ASSIGNORS[s.assignor],),
            isolation_level=s.isolation_level,
            session_timeout_ms=round(s.session_timeout_seconds * 1000),
            heartbeat_interval_ms=round(s.heartbeat_seconds * 1000),
            max_poll_interval_ms=round(s.max_poll_interval_seconds * 1000),
            fetch_max_bytes=s.fetch_bytes,
            max_partition_fetch_bytes=s.partition_fetch_bytes,
            # The queue is looked at between polls: one poll must not overfill it.
            max_poll_records=min(MAX_POLL_RECORDS, s.queue_records),
            # The store's transaction decides what is consumed, and a gap is a decision, not a default.
            enable_auto_commit=False,
            auto_offset_reset="none",
            # A mistyped topic must be an error, not a new topic.
            allow_auto_create_topics=False,
            # A request behind a waiting fetch waits with it: the look at the log's ends is one.
            fetch_max_wait_ms=250,
            metrics_enabled=False,
        )
