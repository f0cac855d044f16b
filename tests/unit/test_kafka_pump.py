"""The thread that owns the Kafka consumer, with a consumer that follows a script."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors

from daemon.errors import OffsetGap, SourceUnavailable, StreamError
from daemon.settings import KafkaSource as KafkaSettings
from daemon.sources.base import Place
from daemon.sources.kafka.handover import Handover
from daemon.sources.kafka.pump import Pump
from tests.support.manual_clock import ManualClock

PLACE, TP = Place("photos", 0), TopicPartition("photos", 0)


class ScriptedConsumer:
    """A consumer of one partition whose polls do what the script says, and then stop the pump."""

    def __init__(self, *script: Callable[[ScriptedConsumer], Any]) -> None:
        self.script = list(script)
        self.pump: Pump | None = None
        self.listener: Any = None
        self.owned: set[TopicPartition] = set()
        self.held: set[TopicPartition] = set()
        self.seeks: list[int] = []
        self.commits: list[int] = []
        self.in_group: int | None = 5
        self.closed = False
        self.end = 100

    def partitions_for_topic(self, topic: str) -> set[int]:
        """Know one partition."""
        return {0}

    def committed(self, partition: TopicPartition, timeout_ms: int) -> int | None:
        """Return what the group has."""
        return self.in_group

    def subscribe(self, topics: list[str], listener: Any) -> None:
        """Keep the listener, to call it as the group would."""
        self.listener = listener

    def assignment(self) -> set[TopicPartition]:
        """Return what is owned."""
        return set(self.owned)

    def paused(self) -> set[TopicPartition]:
        """Return what is paused."""
        return set(self.held)

    def pause(self, *partitions: TopicPartition) -> None:
        """Pause partitions."""
        self.held |= set(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        """Resume partitions."""
        self.held -= set(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Note the offset."""
        self.seeks.append(offset)

    def poll(self, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        """Follow the script."""
        if not self.script:
            assert self.pump is not None
            self.pump.stop()
            return {}
        return self.script.pop(0)(self) or {}

    def beginning_offsets(self, partitions: Any, timeout_ms: int) -> dict[TopicPartition, int]:
        """Begin at 0."""
        return dict.fromkeys(partitions, 0)

    def end_offsets(self, partitions: Any, timeout_ms: int) -> dict[TopicPartition, int]:
        """End where the test says."""
        return dict.fromkeys(partitions, self.end)

    def position(self, partition: TopicPartition, timeout_ms: int) -> int:
        """Have fetched nothing yet."""
        return 0

    def commit_async(self, offsets: dict[TopicPartition, OffsetAndMetadata], callback: Any) -> None:
        """Note the offset and never answer."""
        self.commits.append(offsets[TP].offset)

    def commit(self, offsets: dict[TopicPartition, OffsetAndMetadata], timeout_ms: int) -> None:
        """Note the offset."""
        self.commits.append(offsets[TP].offset)

    def close(self, timeout_ms: int) -> None:
        """Note it."""
        self.closed = True


def call(callback: Coroutine[Any, Any, None]) -> None:
    """Run a callback that has nothing to wait for."""
    with suppress(StopIteration):
        callback.send(None)
        raise AssertionError("the callback waits")


def assigns(consumer: ScriptedConsumer) -> None:
    """Give the member the partition, unpaused, as the group does."""
    consumer.owned, consumer.held = {TP}, set()
    call(consumer.listener.on_partitions_assigned({TP}))


def fetches(*offsets: int) -> Callable[[ScriptedConsumer], dict[TopicPartition, list[Any]]]:
    """Return records of ten bytes."""
    made = [
        SimpleNamespace(
            topic="photos", partition=0, offset=o, key=None, value=bytes(10), headers=[], timestamp=1000
        )
        for o in offsets
    ]
    return lambda _: {TP: made}


def raises(error: Exception) -> Callable[[ScriptedConsumer], None]:
    """Fail one poll."""

    def fail(_: ScriptedConsumer) -> None:
        raise error

    return fail


def run(
    consumer: ScriptedConsumer, handover: Handover | None = None, **changes: object
) -> tuple[Pump, Handover]:
    """Let a pump follow the script to its end, in this thread."""
    clock = ManualClock()
    made = handover or Handover(100, 10_000, clock)
    settings = KafkaSettings.model_validate(
        {"bootstrap_servers": ["kafka:9092"], "topic": "photos"} | changes
    )
    consumer.pump = Pump(settings, lambda: consumer, made, clock, on_look=lambda: None)
    consumer.pump.run({PLACE: 5})
    return consumer.pump, made


def test_an_assignment_seeks_to_the_store_and_keeps_the_pause() -> None:
    """The group forgets both: without this a paused stream would fetch on after every rebalance."""
    handover = Handover(100, 10_000, ManualClock())
    handover.set_pause(True)
    held: list[set[TopicPartition]] = []

    def moves_there_and_back(consumer: ScriptedConsumer) -> None:
        call(consumer.listener.on_partitions_revoked({TP}))
        assigns(consumer)
        held.append(consumer.paused())

    consumer = ScriptedConsumer(assigns, moves_there_and_back)
    run(consumer, handover)
    assert consumer.seeks == [5, 5]
    assert held == [{TP}]


@pytest.mark.parametrize(("in_group", "commits"), [(None, [5]), (3, [5]), (5, []), (8, [])])
def test_a_group_behind_the_store_is_brought_up(in_group: int | None, commits: list[int]) -> None:
    """A kill between the store and the commit shows as no lag; the group is never taken back."""
    consumer = ScriptedConsumer(assigns, lambda _: {})
    consumer.in_group = in_group
    run(consumer)
    assert consumer.commits == commits


def test_trouble_is_waited_out() -> None:
    """An error that may pass ends nothing; it is described until a broker answers again."""
    consumer = ScriptedConsumer(assigns, raises(kafka_errors.KafkaConnectionError("reset")), fetches(5))
    pump, handover = run(consumer)
    assert pump.failure is None
    assert [record.offset for record in handover.take(0.0, 10)] == [5]


def test_a_truncated_log_is_a_gap() -> None:
    """An unclean leader election took records back that were read: nothing goes on in silence."""
    truncated = kafka_errors.LogTruncationError({TP: None})
    consumer = ScriptedConsumer(assigns, fetches(5, 6), raises(truncated))
    pump, _ = run(consumer)
    assert isinstance(pump.failure, OffsetGap)
    assert consumer.closed


def test_a_truncated_log_is_read_again_when_told_so() -> None:
    """Its new records have offsets that were seen before, and they count."""
    truncated = kafka_errors.LogTruncationError({TP: None})
    consumer = ScriptedConsumer(assigns, fetches(5, 6), raises(truncated), fetches(0, 1))
    pump, handover = run(consumer, on_gap="skip")
    assert pump.failure is None
    assert consumer.seeks[-1] == 0
    assert [record.offset for record in handover.take(0.0, 10)] == [0, 1]


def test_a_fenced_static_member_stops_for_good() -> None:
    """Two daemons with one instance id would throw each other out for ever."""
    pump, _ = run(
        ScriptedConsumer(assigns, raises(kafka_errors.FencedInstanceIdError())), group_instance_id="a"
    )
    assert isinstance(pump.failure, StreamError)
    assert "group_instance_id a" in str(pump.failure)


def test_a_defect_is_not_silence() -> None:
    """If the thread dies of anything, intake hears of it instead of waiting for ever."""
    consumer = ScriptedConsumer(assigns, raises(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        run(consumer)
    assert consumer.pump is not None
    assert isinstance(consumer.pump.failure, StreamError)
    assert consumer.closed


def test_a_missing_topic_fails_the_start_and_releases_the_consumer() -> None:
    """A refused start leaves no member behind in the group."""
    consumer = ScriptedConsumer()
    consumer.partitions_for_topic = lambda topic: set()  # type: ignore[method-assign]
    pump, _ = run(consumer)
    with pytest.raises(SourceUnavailable, match="photos does not exist"):
        pump.started.result()
    assert pump.failure is None
    assert consumer.closed


def test_what_waits_to_be_committed_is_committed_at_the_end() -> None:
    """Only one commit is under way at a time, and the last offsets go out before the group is left."""
    handover = Handover(100, 10_000, ManualClock())
    consumer = ScriptedConsumer(
        assigns,
        lambda c: handover.commit({PLACE: 7}),
        lambda c: handover.commit({PLACE: 8}),
        lambda c: handover.commit({PLACE: 9}),
    )
    run(consumer, handover)
    assert consumer.commits == [7, 9]
