"""The intake thread: order of the hand-over, failures, and counters that add up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.errors import FencedOwner, OffsetGap, SourceUnavailable
from daemon.messages.encode import Item, json_class_batch
from daemon.sources.base import Message, Place, Record
from daemon.sources.embedded import EmbeddedLog, EmbeddedSink, EmbeddedSource
from daemon.state import SqlState
from daemon.state.base import Decision, StoreResult
from tests.support.ingest import TOPIC, FlakySink, ScriptedSource, image, record
from tests.support.intake_bench import Workbench, good, log_of
from tests.support.manual_clock import ManualClock

PLACE = Place(TOPIC, 0)


BAD = Message(b"no image", key=b"k", headers={"label": b"cat", "content-type": b"image/png"})


class TestHandOver:
    def test_records_become_samples_dead_letters_and_offsets(self, bench: Workbench) -> None:
        """A poll is stored, committed after, counted, and announced."""
        both = json_class_batch("dog", "image/png", [Item(image(8)), Item(b"bad", "b")])
        source = ScriptedSource([log_of([good(0), BAD, Message(None), good(0), both])])
        sink = FlakySink()
        intake = bench.run(source, sink)
        assert (intake.failed, source.closed) == (None, True)
        assert bench.state.next_offsets("s") == {PLACE: 5}
        assert source.commits == [{PLACE: 5}]
        assert bench.records() == {"accepted": 2, "duplicate": 1, "dead_lettered": 1, "tombstone": 1}
        assert bench.samples() == {"stored": 2, "duplicate": 1, "dead_lettered": 2}
        assert bench.value("accrete_dead_letters_total", reason="bad_payload") == 2
        assert [result.stored for result in bench.stored] == [2]
        assert [(topic, m.value, m.key, m.idempotency_key) for topic, m in sink.sent] == [
            ("labelled.dlq", b"no image", b"k", "labelled/0/1/0"),
            ("labelled.dlq", b"bad", b"dog", "labelled/0/4/1"),
        ]
        assert sink.sent[1][1].headers["accrete-source-position"] == b"1"
        assert bench.value("accrete_consumer_lag_records", partition="0") == 3
        assert bench.value("accrete_consumer_lag_seconds", partition="0") == 2.0
        assert bench.value("accrete_source_up") == 1
        assert bench.value("accrete_consumer_last_poll_timestamp_seconds") == bench.clock.now()

    def test_dead_letters_come_first_and_the_commit_last(self, bench: Workbench) -> None:
        """A letter is durable before the offset passes it, the offset before the log is told."""
        events: list[str] = []

        class NotingSink(FlakySink):
            def send(self, topic: str, messages: Sequence[Message]) -> None:
                events.append(f"letter, offset {bench.state.next_offsets('s').get(PLACE)}")

        class NotingSource(ScriptedSource):
            def commit(self, next_offsets: object) -> None:
                events.append(f"commit, offset {bench.state.next_offsets('s').get(PLACE)}")

        bench.run(NotingSource([log_of([BAD])]), NotingSink())
        assert events == ["letter, offset None", "commit, offset 1"]

    def test_a_restart_begins_at_the_states_offsets(self, bench: Workbench) -> None:
        """The source is told what is stored."""
        records = log_of([good(0), good(1)])
        bench.run(ScriptedSource([records]))
        source = ScriptedSource([])
        bench.run(source)
        assert source.started_with == [{PLACE: 2}]

    def test_redelivery_counts_as_duplicates(self, bench: Workbench) -> None:
        """The same records again store nothing and move nothing wrongly."""
        records = log_of([good(0), good(1)])
        bench.run(ScriptedSource([records, records]))
        assert bench.records() == {"accepted": 2, "duplicate": 2, "dead_lettered": 0, "tombstone": 0}
        assert bench.state.counts("s").stored == 2


class TestFailures:
    def test_samples_of_a_forgotten_class_are_dead_letters(self, bench: Workbench) -> None:
        """Also where the class is forgotten between the look at the labels and the store."""
        wish = Decision(0.0, "forget", "operator", True, "asked")
        bench.run(ScriptedSource([log_of([good(0)])]))
        forget_now = iter([True])

        def refused(stream: str) -> frozenset[str]:
            labels = known(stream)
            if next(forget_now, False):
                bench.state.ask_forgetting("s", 0, wish)
            return labels

        known = bench.state.refused_labels
        batch = json_class_batch("dog", "image/png", [Item(image(8), "d")])
        later = [record(message, offset + 1) for offset, message in enumerate([good(1), batch])]
        sink = FlakySink()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(bench.state, "refused_labels", refused)
            intake = bench.run(ScriptedSource([later]), sink)
        assert intake.failed is None
        assert bench.samples() == {"stored": 2, "duplicate": 0, "dead_lettered": 1}
        assert bench.value("accrete_dead_letters_total", reason="class_forgotten") == 1
        [(_, letter)] = sink.sent
        assert (letter.value, letter.headers["label"]) == (image(1), b"cat")
        bench.state.forget_unlearnt("s", 0, wish)
        bench.state.remember("s", 0, wish)
        bench.run(ScriptedSource([[record(letter, 3)]]))
        assert bench.samples()["stored"] == 3

    def test_an_unreachable_source_is_tried_again(self, bench: Workbench) -> None:
        """At the start and at a poll: source_up falls, the waits grow, nothing is lost."""
        source = ScriptedSource([SourceUnavailable("away"), SourceUnavailable("away"), log_of([good(0)])])
        source.start_errors = [SourceUnavailable("away")] * 3
        up: list[float] = []
        bench.on_stored = lambda result: up.append(bench.value("accrete_source_up"))
        intake = bench.run(source)
        assert intake.failed is None
        assert len(source.started_with) == 4
        assert bench.state.counts("s").stored == 1
        assert up == [1.0]
        assert max(bench.clock.waits) <= 0.5, "longer waits come in pieces with a heartbeat"

    def test_dead_letters_wait_for_their_log(self, bench: Workbench) -> None:
        """While it is away the source is polled but paused, and the offsets stay; then all goes on."""
        source = ScriptedSource([log_of([BAD, good(0)]), [record(good(1), 2)]])
        sink = FlakySink(failures=4)
        intake = bench.run(source, sink)
        assert intake.failed is None
        assert len(sink.sent) == 1
        assert source.calls[:3] == ["poll", "pause", "poll paused"]
        assert source.calls.index("resume") < source.calls.index("poll", 1)
        assert bench.state.counts("s").stored == 2

    def test_stopping_while_dead_letters_wait_stores_nothing(self, bench: Workbench) -> None:
        """Neither the letter nor the samples behind it: a restart reads them again."""
        source = ScriptedSource([log_of([BAD, good(0)])])

        class StoppingSink(FlakySink):
            def send(self, topic: str, messages: Sequence[Message]) -> None:
                intake.stop()
                raise SourceUnavailable("away")

        intake = bench.intake(source, StoppingSink())
        intake.start()
        assert intake.join(30)
        assert intake.failed is None
        assert bench.state.next_offsets("s") == {}
        assert source.commits == []

    def test_a_failed_commit_is_made_good_by_the_next(self, bench: Workbench) -> None:
        """The state's offsets count; the log is told later."""
        source = ScriptedSource([[record(good(0), 0)], [record(good(1), 1)]])
        source.commit_errors = [SourceUnavailable("away")]
        intake = bench.run(source)
        assert intake.failed is None
        assert source.commits == [{PLACE: 2}]

    @pytest.mark.parametrize("error", [OffsetGap("trimmed"), RuntimeError("a bug")])
    def test_what_could_lose_records_ends_the_intake(self, bench: Workbench, error: Exception) -> None:
        """It says so, and the source is closed."""
        source = ScriptedSource([[record(good(0), 0)], error, [record(good(1), 1)]])
        intake = bench.run(source)
        assert intake.failed is error
        assert (bench.state.next_offsets("s"), source.closed) == ({PLACE: 1}, True)
        assert bench.value("accrete_source_up") == 0

    def test_a_fenced_daemon_stops_taking(self, bench: Workbench, tmp_path: Path) -> None:
        """It neither stores nor commits."""
        (tmp_path / "lock").unlink()
        usurper = SqlState.open(tmp_path, holdout_fraction={}, clock=bench.clock)
        source = ScriptedSource([log_of([good(0)])])
        intake = bench.run(source)
        assert isinstance(intake.failed, FencedOwner)
        assert (usurper.next_offsets("s"), source.commits) == ({}, [])
        usurper.close()

    def test_a_broken_listener_stops_nothing(self, bench: Workbench) -> None:
        """The samples are stored whatever the listener does."""

        def explode(result: StoreResult) -> None:
            raise RuntimeError("listener")

        bench.on_stored = explode
        intake = bench.run(ScriptedSource([[record(good(0), 0)], [record(good(1), 1)]]))
        assert intake.failed is None
        assert bench.state.counts("s").stored == 2


class TestPolling:
    def test_an_operators_pause_keeps_polling(self, bench: Workbench) -> None:
        """Paused, the source is polled and returns nothing; resumed, it goes on."""

        class PausedSource(ScriptedSource):
            def poll(self, timeout: float, max_records: int) -> Sequence[Record]:
                if self.paused and self.calls.count("poll paused") == 3:
                    intake.resume()
                return super().poll(timeout, max_records)

        source = PausedSource([log_of([good(0)])])
        intake = bench.intake(source, FlakySink())
        source.at_end = intake.stop
        intake.pause()
        assert bench.value("accrete_consumer_paused") == 1
        intake.start()
        assert intake.join(30)
        assert source.calls[:2] == ["pause", "poll paused"]
        assert source.calls.count("poll paused") == 4
        assert bench.state.counts("s").stored == 1
        assert bench.value("accrete_consumer_paused") == 0

    def test_slow_decoding_does_not_silence_the_poll(self, bench: Workbench) -> None:
        """Where a record's samples take long, the paused source is polled between them."""

        class SlowClock(ManualClock):
            def monotonic(self) -> float:
                self._time += 0.2
                return self._time

        bench.clock = SlowClock()
        items = [Item(image(n)) for n in range(20)]
        source = ScriptedSource([[record(json_class_batch("cat", "image/png", items))]])
        intake = bench.run(source)
        assert intake.failed is None
        assert source.calls.count("poll paused") >= 5
        assert bench.state.counts("s").stored == 20


MESSAGES = st.one_of(
    st.integers(0, 4).map(good),
    st.just(BAD),
    st.just(Message(None)),
    st.lists(st.one_of(st.integers(0, 4).map(image), st.just(b"bad")), min_size=1, max_size=4).map(
        lambda payloads: json_class_batch("cat", "image/png", [Item(p) for p in payloads])
    ),
    st.just(Message(b"{", headers={"content-type": b"application/vnd.accrete.class-batch+json"})),
)


class TestCountersReconcile:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.lists(MESSAGES, max_size=6), max_size=4))
    def test_outcomes_add_up_for_any_mix(
        self, tmp_path_factory: pytest.TempPathFactory, polls: list[list[Message]]
    ) -> None:
        """Outcomes of records and of samples add up to all of them, and the durable totals agree."""
        bench = Workbench(tmp_path_factory.mktemp("state"))
        offset = 0
        script = []
        for poll in polls:
            script.append([record(message, offset + n) for n, message in enumerate(poll)])
            offset += len(poll)
        sink = FlakySink()
        intake = bench.run(ScriptedSource(script), sink)
        assert intake.failed is None
        records, samples = bench.records(), bench.samples()
        assert sum(records.values()) == offset
        assert records["tombstone"] == sum(m.value is None for poll in polls for m in poll)
        counts = bench.state.counts("s")
        assert samples == {
            "stored": counts.stored,
            "duplicate": counts.duplicate,
            "dead_lettered": counts.dead_lettered,
        }
        assert len(sink.sent) == counts.dead_lettered
        assert counts.stored == sum(b.train + b.holdout for b in bench.state.buffers("s"))
        bench.state.close()


def _run_until_stored(bench: Workbench, log: EmbeddedLog) -> None:
    bench.on_stored = lambda result: intake.stop()
    intake = bench.intake(EmbeddedSource(log, TOPIC, bench.clock), EmbeddedSink(log))
    intake.start()
    assert intake.join(30)
    assert intake.failed is None


def test_an_embedded_stream_survives_restarts(bench: Workbench, tmp_path: Path) -> None:
    """Log, intake and state together: stopped and started between polls, each message counts once."""
    log = EmbeddedLog(tmp_path / "topics.db", bench.clock)
    for first in (0, 10):
        log.append(TOPIC, [*(good(first + n) for n in range(10)), BAD])
        _run_until_stored(bench, log)
    assert bench.state.counts("s").stored == 20
    assert log.end_offset(f"{TOPIC}.dlq") == 2
    assert bench.state.next_offsets("s") == {PLACE: 22}
    log.close()
