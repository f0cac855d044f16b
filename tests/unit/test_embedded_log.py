"""The embedded topic log, its source and its sink."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.errors import OffsetGap, SourceUnavailable
from daemon.metrics import Metrics
from daemon.settings import EmbeddedSource as EmbeddedSettings
from daemon.settings import LogSettings
from daemon.sources import open_sink, open_source
from daemon.sources.base import Lag, Message, Place
from daemon.sources.embedded import EmbeddedLog, EmbeddedSink, EmbeddedSource
from daemon.sources.log import Extent
from tests.support.manual_clock import ManualClock

PLACE = Place("t", 0)


@pytest.fixture
def clock() -> ManualClock:
    """Start a clock at 100 s."""
    return ManualClock(100.0)


@pytest.fixture
def log(tmp_path: Path, clock: ManualClock) -> Iterator[EmbeddedLog]:
    """Open a log for one test."""
    log = EmbeddedLog(tmp_path / "topics.db", clock)
    yield log
    log.close()


def numbered(first: int, count: int) -> list[Message]:
    """Build messages that hold their number."""
    return [Message(str(n).encode()) for n in range(first, first + count)]


def source(log: EmbeddedLog, clock: ManualClock, stored: dict[Place, int] | None = None) -> EmbeddedSource:
    """Start a consumer of topic `t`."""
    result = EmbeddedSource(log, "t", clock)
    result.start(stored or {})
    return result


class TestLog:
    def test_what_goes_in_comes_out(self, log: EmbeddedLog) -> None:
        """Bytes, key, headers of any bytes, tombstones, offsets from 0 and the time survive."""
        every_byte = bytes(range(256))
        offsets = log.append("t", [Message(b"v", b"k", {"x": every_byte}), Message(None)])
        assert offsets == [0, 1]
        first, second = log.read("t", 0, 0, 10)
        assert (first.value, first.key, first.headers, first.timestamp) == (
            b"v",
            b"k",
            {"x": every_byte},
            100.0,
        )
        assert (second.value, second.key, second.offset, second.place) == (None, None, 1, PLACE)

    def test_an_idempotency_key_counts_once_per_topic(self, log: EmbeddedLog) -> None:
        """Sent again, in one batch or later, it is the first one's offset; another topic has its own."""
        a, b = Message(b"a", idempotency_key="a"), Message(b"b", idempotency_key="b")
        assert log.append("t", [a, b, a]) == [0, 1, 0]
        assert log.append("t", [Message(b"other", idempotency_key="b"), Message(b"c")]) == [1, 2]
        assert [r.value for r in log.read("t", 0, 0, 10)] == [b"a", b"b", b"c"]
        assert log.append("u", [b]) == [0]

    def test_a_trimmed_key_is_remembered(self, log: EmbeddedLog) -> None:
        """A retry after the message has gone does not append it again."""
        log.append("t", [Message(b"a", idempotency_key="a"), Message(b"b")])
        assert log.trim("t", 1) == 1
        assert log.append("t", [Message(b"a", idempotency_key="a")]) == [0]
        assert log.extents("t") == {0: Extent(1, 2)}

    def test_offsets_are_never_given_twice(self, log: EmbeddedLog) -> None:
        """Even a log trimmed empty goes on where it was."""
        log.append("t", numbered(0, 3))
        assert log.trim("t", 99) == 3
        assert log.append("t", numbered(3, 1)) == [3]
        assert log.trim("t", 1) == 0, "trimming backwards does nothing"
        assert log.end_offset("t") == 4

    def test_partitions_are_apart(self, log: EmbeddedLog) -> None:
        """Each has its own offsets, and a partition that is not there is a mistake."""
        log.create_topic("t", 2)
        log.create_topic("t", 2)
        assert log.append("t", numbered(0, 2), partition=1) == [0, 1]
        assert log.extents("t") == {0: Extent(0, 0), 1: Extent(0, 2)}
        with pytest.raises(ValueError, match="no partition 2"):
            log.append("t", numbered(0, 1), partition=2)
        with pytest.raises(ValueError, match="has 2 partitions, not 3"):
            log.create_topic("t", 3)

    def test_reading_is_bounded(self, log: EmbeddedLog) -> None:
        """By count and by bytes, but never to nothing where there is something."""
        log.append("t", [Message(bytes(100)) for _ in range(5)])
        assert [r.offset for r in log.read("t", 0, 1, 2)] == [1, 2]
        assert [r.offset for r in log.read("t", 0, 0, 10, max_bytes=150)] == [0, 1]
        assert [r.offset for r in log.read("t", 0, 3, 10, max_bytes=1)] == [3]
        assert log.read("t", 0, 5, 10) == []

    def test_two_processes_produce_at_once(self, log: EmbeddedLog) -> None:
        """Every message of each lies there once, in its producer's order, without a hole."""
        command = [sys.executable, "-m", "tests.support.producing_process", str(log.path)]
        producers = [subprocess.Popen([*command, name, "200"]) for name in ("a", "b")]
        assert [p.wait(60) for p in producers] == [0, 0]
        records = log.read("t", 0, 0, 1000)
        assert [r.offset for r in records] == list(range(400))
        for name in ("a", "b"):
            mine = [r.value for r in records if r.value is not None and r.value.startswith(name.encode())]
            assert mine == [f"{name}-{n}".encode() for n in range(200)]

    def test_a_broken_file_is_unavailable(self, tmp_path: Path) -> None:
        """A directory in the file's place is the log's fault, in the daemon's words."""
        (tmp_path / "topics.db").mkdir()
        with pytest.raises(SourceUnavailable, match=r"topics\.db: the topic log cannot be used now"):
            EmbeddedLog(tmp_path / "topics.db")


class TestSource:
    def test_it_goes_on_at_the_stored_offset(self, log: EmbeddedLog, clock: ManualClock) -> None:
        """The store's offset wins over anything else; without one it begins at the start."""
        log.append("t", numbered(0, 5))
        assert [r.offset for r in source(log, clock, {PLACE: 3}).poll(1.0, 10)] == [3, 4]
        assert [r.offset for r in source(log, clock).poll(1.0, 2)] == [0, 1]

    def test_poll_returns_at_once_when_there_is_something(self, log: EmbeddedLog, clock: ManualClock) -> None:
        """It waits only for an empty log, in short steps, no longer than the timeout."""
        consumer = source(log, clock)
        log.append("t", numbered(0, 1))
        assert len(consumer.poll(5.0, 10)) == 1
        assert clock.waits == []
        assert consumer.poll(0.12, 10) == []
        assert clock.waits == pytest.approx([0.05, 0.05, 0.02])

    def test_poll_sees_what_arrives_while_it_waits(self, log: EmbeddedLog) -> None:
        """A message appended during the wait is returned before the timeout."""

        class AppendingClock(ManualClock):
            def wait(self, event: object, seconds: float) -> bool:
                if len(self.waits) == 2:
                    log.append("t", numbered(0, 1))
                return super().wait(event, seconds)  # type: ignore[arg-type]

        clock = AppendingClock()
        assert len(source(log, clock).poll(5.0, 10)) == 1
        assert len(clock.waits) == 3

    def test_all_partitions_are_served(self, log: EmbeddedLog, clock: ManualClock) -> None:
        """The one furthest behind goes first, so that a busy partition starves no other."""
        log.create_topic("t", 2)
        log.append("t", numbered(0, 6), partition=0)
        log.append("t", numbered(0, 2), partition=1)
        consumer = source(log, clock)
        polled = [[(r.partition, r.offset) for r in consumer.poll(0.0, 3)] for _ in range(3)]
        assert polled[0] == [(0, 0), (0, 1), (0, 2)]
        assert sorted(item for poll in polled for item in poll) == [(0, n) for n in range(6)] + [
            (1, 0),
            (1, 1),
        ]

    def test_a_paused_source_returns_nothing(self, log: EmbeddedLog, clock: ManualClock) -> None:
        """Until it is resumed; then it goes on where it was."""
        log.append("t", numbered(0, 2))
        consumer = source(log, clock)
        consumer.pause()
        assert consumer.poll(0.2, 10) == []
        consumer.resume()
        assert len(consumer.poll(0.2, 10)) == 2

    def test_trimmed_records_are_a_gap(self, log: EmbeddedLog, clock: ManualClock) -> None:
        """Records lost before they were stored are never jumped over, at the start or later."""
        log.append("t", numbered(0, 5))
        consumer = source(log, clock, {PLACE: 1})
        log.trim("t", 3)
        with pytest.raises(OffsetGap, match="2 records have been trimmed"):
            consumer.poll(0.0, 10)
        with pytest.raises(OffsetGap, match="starts at offset 3, the state wants offset 2"):
            source(log, clock, {PLACE: 2})
        assert [r.offset for r in source(log, clock, {PLACE: 3}).poll(0.0, 10)] == [3, 4]

    @pytest.mark.parametrize("place", [PLACE, Place("t", 1)])
    def test_a_replaced_log_is_a_gap(self, log: EmbeddedLog, clock: ManualClock, place: Place) -> None:
        """An offset the log has never given must not be waited for in silence."""
        log.append("t", numbered(0, 5))
        with pytest.raises(OffsetGap, match="the log has been replaced"):
            source(log, clock, {place: 6})

    def test_lag_counts_what_is_not_committed(self, log: EmbeddedLog, clock: ManualClock) -> None:
        """In records, and in the age of the oldest of them."""
        log.append("t", numbered(0, 2))
        clock.advance(10.0)
        log.append("t", numbered(2, 1))
        clock.advance(5.0)
        consumer = source(log, clock)
        consumer.poll(0.0, 10)
        assert consumer.lag() == {PLACE: Lag(3, 15.0)}
        consumer.commit({PLACE: 2})
        assert consumer.lag() == {PLACE: Lag(1, 5.0)}
        consumer.commit({PLACE: 3})
        assert consumer.lag() == {PLACE: Lag(0, 0.0)}

    def test_closing_ends_a_wait(self, log: EmbeddedLog, clock: ManualClock) -> None:
        """A closed source's poll returns without waiting."""
        consumer = source(log, clock)
        consumer.close()
        consumer.close()
        assert consumer.poll(60.0, 10) == []
        assert clock.waits == []


def test_the_settings_choose_topic_and_sink(log: EmbeddedLog, clock: ManualClock) -> None:
    """An embedded stream reads the topic named after it unless the settings name another."""
    for settings, topic in ((EmbeddedSettings(), "pets"), (EmbeddedSettings(topic="animals"), "animals")):
        sink = open_sink(settings, log)
        assert isinstance(sink, EmbeddedSink)
        sink.send(topic, [Message(b"x")])
        consumer = open_source("pets", settings, log, clock, Metrics(), LogSettings())
        consumer.start({})
        assert [r.topic for r in consumer.poll(0.0, 10)] == [topic]
