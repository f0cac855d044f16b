"""The durable state: transactions, registry, sessions, ownership."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.errors import (
    DeadLetterReason,
    FencedOwner,
    StateError,
    StateLocked,
    StateVersionMismatch,
)
from daemon.sources.base import Place
from daemon.sqlite import sqlite_engine
from daemon.state import SqlState
from daemon.state.base import (
    ClassState,
    DeadSample,
    Decision,
    NewSample,
    SessionOutcome,
    StreamCounts,
)
from daemon.state.holdout import is_holdout
from tests.support.manual_clock import ManualClock

PLACE = Place("labelled", 0)
DECISION = Decision(at=1.0, kind="trigger", policy="new_classes", fired=True, reason="enough", facts={"n": 2})


def sample(sample_id: str, label: str, offset: int = 0, payload: bytes = b"payload") -> NewSample:
    """Build one sample on its way into the store."""
    return NewSample(sample_id, label, "image/png", payload, PLACE, offset, 0, 2.0)


def samples(label: str, count: int) -> list[NewSample]:
    """Build numbered samples of one class."""
    return [sample(f"{label}-{n}", label, n) for n in range(count)]


def dead(offset: int) -> DeadSample:
    """Build a dead letter at an offset."""
    return DeadSample(PLACE, offset, 0, DeadLetterReason.BAD_LABEL, "empty")


def opened(directory: Path, clock: ManualClock | None = None, fraction: float = 0.25) -> SqlState:
    """Open the state of two streams for writing."""
    return SqlState.open(
        directory, holdout_fraction={"s": fraction, "other": fraction}, clock=clock or ManualClock()
    )


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SqlState]:
    """Open a state for one test."""
    state = opened(tmp_path)
    yield state
    state.close()


def begin(state: SqlState, new_classes: list[int]) -> int:
    """Begin a session and return its id."""
    return state.begin_session(
        "s",
        new_classes=new_classes,
        method="sgds",
        settings={"epochs": 3},
        seed=7,
        decision=DECISION,
        at=10.0,
    ).id


class TestStore:
    def test_a_sample_its_offset_and_the_totals_move_together(self, state: SqlState) -> None:
        """One call stores samples, counts dead letters and moves offsets."""
        result = state.store("s", [sample("a", "cat"), sample("b", "dog", 1)], [dead(2)], {PLACE: 3})
        assert (result.stored, result.dead_lettered, result.new_class_ids) == (2, 1, (0, 1))
        assert state.next_offsets("s") == {PLACE: 3}
        assert state.counts("s") == StreamCounts(stored=2, duplicate=0, dead_lettered=1)

    def test_an_id_counts_once(self, state: SqlState) -> None:
        """A known id is a duplicate; of an id given twice in one call the first is stored."""
        state.store("s", [sample("a", "cat", payload=b"first")], [], {PLACE: 1})
        again = [sample("a", "dog", 1), sample("b", "cat", 2, b"x"), sample("b", "cat", 3, b"y")]
        result = state.store("s", again, [], {PLACE: 4})
        assert (result.stored, result.duplicate_ids) == (1, frozenset({"a"}))
        assert state.counts("s") == StreamCounts(stored=2, duplicate=2, dead_lettered=0)
        assert [s.payload for s in state.payloads("s", ["b", "a"])] == [b"x", b"first"]
        assert [c.label for c in state.classes("s")] == ["cat"], "a duplicate must not create a class"

    def test_class_ids_are_permanent_and_per_stream(self, state: SqlState) -> None:
        """Ids follow the first arrival, and each stream has its own."""
        state.store("s", [sample("a", "cat"), sample("b", "dog"), sample("c", "cat")], [], {})
        state.store("s", [sample("d", "ant"), sample("e", "dog")], [], {})
        state.store("other", [sample("a", "dog")], [], {})
        assert [(c.id, c.label, c.state) for c in state.classes("s")] == [
            (0, "cat", ClassState.PENDING),
            (1, "dog", ClassState.PENDING),
            (2, "ant", ClassState.PENDING),
        ]
        assert [(c.id, c.label) for c in state.classes("other")] == [(0, "dog")]
        assert state.sample_labels("s", ["e", "a", "d"]) == [1, 0, 2]

    def test_a_failed_transaction_leaves_nothing(self, state: SqlState) -> None:
        """If one row cannot be written, no sample, class, total or offset is."""
        broken = sample("b", "dog")._replace(content_type=None)  # type: ignore[arg-type]
        with pytest.raises(Exception, match="NOT NULL"):
            state.store("s", [sample("a", "cat"), broken], [dead(1)], {PLACE: 2})
        assert state.counts("s") == StreamCounts(0, 0, 0)
        assert (state.classes("s"), state.next_offsets("s")) == ([], {})

    def test_an_unknown_stream_is_a_mistake(self, state: SqlState) -> None:
        """Without a holdout fraction nothing may be stored."""
        with pytest.raises(ValueError, match="'nope' is not configured"):
            state.store("nope", [sample("a", "cat")], [], {})

    def test_many_ids_exceed_no_statement_limit(self, state: SqlState) -> None:
        """Thousands of samples go in and out in one call, in order."""
        many = samples("cat", 2500)
        assert state.store("s", many, [], {}).stored == 2500
        assert state.store("s", many, [], {}).stored == 0
        ids = [s.id for s in reversed(many)]
        assert [s.id for s in state.payloads("s", ids)] == ids

    def test_unknown_samples_are_named(self, state: SqlState) -> None:
        """Asking for an id that is not there says which."""
        with pytest.raises(ValueError, match="no sample 'ghost'"):
            list(state.payloads("s", ["ghost"]))

    def test_threads_share_one_state(self, state: SqlState) -> None:
        """Writers of several threads lose nothing and invent no class twice."""
        threads = [
            threading.Thread(
                target=lambda t=t: [
                    state.store("s", [sample(f"{t}-{n}", f"class-{n % 5}")], [], {}) for n in range(30)
                ]
            )
            for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert state.counts("s").stored == 120
        assert sorted(c.label for c in state.classes("s")) == [f"class-{n}" for n in range(5)]


class TestBuffersAndSessions:
    def test_buffers_count_what_is_not_learnt(self, tmp_path: Path) -> None:
        """Training and holdout samples of pending classes count, with the times of their arrival."""
        clock = ManualClock(100.0)
        state = opened(tmp_path, clock)
        state.store("s", samples("cat", 40), [], {})
        clock.advance(5.0)
        state.store("s", [*samples("dog", 1), sample("cat-x", "cat")], [], {})
        cat, dog = state.buffers("s")
        held = sum(is_holdout("s", f"cat-{n}", 0.25) for n in range(40)) + is_holdout("s", "cat-x", 0.25)
        assert (cat.label, cat.train, cat.holdout) == ("cat", 41 - held, held)
        assert (cat.first_arrival, cat.last_arrival) == (100.0, 105.0)
        assert (dog.train + dog.holdout, dog.first_arrival) == (1, 105.0)
        state.close()

    def test_a_session_takes_training_samples_of_its_classes_only(self, state: SqlState) -> None:
        """Holdout samples and other classes stay out."""
        state.store("s", samples("cat", 40) + samples("dog", 40), [], {})
        session = begin(state, [0])
        expected = sorted(f"cat-{n}" for n in range(40) if not is_holdout("s", f"cat-{n}", 0.25))
        assert state.session_sample_ids("s", session) == expected
        assert not any(s.holdout for s in state.payloads("s", expected))
        held = state.holdout_sample_ids("s", [1, 0], 3)
        assert state.sample_labels("s", held) == [1, 1, 1, 0, 0, 0]
        assert all(s.holdout for s in state.payloads("s", held))

    def test_partitions_that_interleave_otherwise_give_the_same_session(self, tmp_path: Path) -> None:
        """The order of arrival is chance; what is learnt from the same samples must not depend on it."""
        listed = []
        for name, arrived in (("one", samples("cat", 40)), ("other", samples("cat", 40)[::-1])):
            state = opened(tmp_path / name)
            state.store("s", arrived, [], {})
            session = begin(state, [0])
            listed.append((state.session_sample_ids("s", session), state.holdout_sample_ids("s", [0], 40)))
            state.close()
        assert listed[0] == listed[1]

    def test_the_earliest_holdout_samples_are_the_logs_first(self, tmp_path: Path) -> None:
        """Of one transaction by offset, whatever the order in which their rows were written."""
        state = opened(tmp_path, fraction=1.0)
        state.store("s", [sample("z", "cat", 0), sample("m", "cat", 1), sample("a", "cat", 2)], [], {})
        assert state.holdout_sample_ids("s", [0], 2) == ["m", "z"]
        state.close()

    def test_a_running_sessions_samples_are_still_unlearnt(self, state: SqlState) -> None:
        """Until it is promoted nothing has been learnt; what arrives meanwhile is not its own."""
        state.store("s", samples("cat", 20), [], {})
        before = state.buffers("s")
        session = begin(state, [0])
        assert state.buffers("s") == before
        assigned = state.session_sample_ids("s", session)
        state.store("s", [sample(f"late-{n}", "cat") for n in range(20)], [], {})
        assert state.session_sample_ids("s", session) == assigned

    def test_promotion_makes_classes_live(self, state: SqlState) -> None:
        """The generation gets the next number and becomes live, the classes live, the buffers empty."""
        state.store("s", samples("cat", 20) + samples("dog", 20), [], {})
        session = begin(state, [1])
        ended = state.end_session(
            "s",
            session,
            outcome=SessionOutcome.PROMOTED,
            at=20.0,
            detail={"seconds": 10},
            generation="d1",
            accuracy=0.9,
            decision=DECISION,
        )
        assert (ended.outcome, ended.ended_at, ended.generation) == (SessionOutcome.PROMOTED, 20.0, "d1")
        live = state.live("s")
        assert live is not None
        assert (live.number, live.digest, live.session, live.accuracy) == (1, "d1", session, 0.9)
        assert [c.state for c in state.classes("s")] == [ClassState.PENDING, ClassState.LIVE]
        assert [b.label for b in state.buffers("s")] == ["cat"]
        assert state.sessions("s") == [ended]
        assert len(state.decisions("s", 10)) == 2

    @pytest.mark.parametrize("outcome", [SessionOutcome.REJECTED, SessionOutcome.FAILED])
    def test_without_promotion_everything_is_unlearnt_again(
        self, state: SqlState, outcome: SessionOutcome
    ) -> None:
        """The samples return to the buffers, and the digest gets no number."""
        state.store("s", samples("cat", 20), [], {})
        before = state.buffers("s")
        session = begin(state, [0])
        state.end_session("s", session, outcome=outcome, at=2.0, detail={}, generation="bad")
        assert state.buffers("s") == before
        assert state.session_sample_ids("s", session) == []
        assert (state.live("s"), state.generations("s")) == (None, [])
        assert begin(state, [0]) == session + 1

    def test_new_samples_of_live_classes_join_the_next_session(self, state: SqlState) -> None:
        """A session also takes what arrived for live classes, and builds on the live generation."""
        state.store("s", samples("cat", 20), [], {})
        first = begin(state, [0])
        state.end_session(
            "s", first, outcome=SessionOutcome.PROMOTED, at=2.0, detail={}, generation="d1", accuracy=1.0
        )
        late = [sample(f"late-{n}", "cat") for n in range(10)]
        state.store("s", late + samples("dog", 10), [], {})
        (cat, _) = state.buffers("s")
        assert (cat.state, cat.holdout) == (ClassState.LIVE, 0)
        second = begin(state, [1])
        assert state.sessions("s")[second].parent == "d1"
        labels = set(state.sample_labels("s", state.session_sample_ids("s", second)))
        assert labels == {0, 1}
        assert "cat-0" not in state.session_sample_ids("s", second)

    def test_sessions_are_guarded(self, state: SqlState) -> None:
        """One runs at a time, it ends once, its classes are pending ones, a promotion has a digest."""
        state.store("s", samples("cat", 20), [], {})
        with pytest.raises(ValueError, match="not pending"):
            begin(state, [5])
        session = begin(state, [0])
        with pytest.raises(ValueError, match="still running"):
            begin(state, [0])
        assert state.restart_session("s", session).attempt == 2
        with pytest.raises(ValueError, match="digest"):
            state.end_session("s", session, outcome=SessionOutcome.PROMOTED, at=2.0, detail={})
        state.end_session("s", session, outcome=SessionOutcome.FAILED, at=2.0, detail={})
        with pytest.raises(ValueError, match="ended already"):
            state.end_session("s", session, outcome=SessionOutcome.FAILED, at=2.0, detail={})
        with pytest.raises(ValueError, match="ended already"):
            state.restart_session("s", session)
        assert len(state.decisions("s", 10)) == 1, "a refused session leaves no decision behind"

    def test_the_live_pointer_moves_back_and_forth(self, state: SqlState) -> None:
        """Any promoted generation can be live again; another one cannot."""
        for number, label in enumerate(("cat", "dog")):
            state.store("s", samples(label, 10), [], {})
            session = begin(state, [number])
            state.end_session(
                "s", session, outcome=SessionOutcome.PROMOTED, at=2.0, detail={}, generation=f"d{number}"
            )
        assert state.set_live("s", "d0", DECISION).number == 1
        live = state.live("s")
        assert live is not None
        assert live.digest == "d0"
        with pytest.raises(ValueError, match="no generation 'd9'"):
            state.set_live("s", "d9", DECISION)
        assert [g.number for g in state.generations("s")] == [1, 2]

    def test_decisions_come_newest_first(self, state: SqlState) -> None:
        """The log keeps reasons and facts."""
        for n in range(4):
            state.record_decision("s", Decision(float(n), "gate", "accuracy", n > 1, f"r{n}", {"n": n}))
        assert [d.reason for d in state.decisions("s", 2)] == ["r3", "r2"]
        assert state.decisions("s", 1)[0].facts == {"n": 3}


class TestOwnership:
    def test_a_restart_finds_everything(self, tmp_path: Path) -> None:
        """What was stored is there after closing and opening again."""
        state = opened(tmp_path)
        state.store("s", samples("cat", 20), [dead(20)], {PLACE: 21})
        begin(state, [0])
        before = (state.classes("s"), state.buffers("s"), state.sessions("s"), state.counts("s"))
        state.close()
        state.close()
        state = opened(tmp_path)
        after = (state.classes("s"), state.buffers("s"), state.sessions("s"), state.counts("s"))
        assert after == before
        state.close()

    def test_a_second_writer_is_refused(self, tmp_path: Path, state: SqlState) -> None:
        """The lock names the process that holds it."""
        with pytest.raises(StateLocked, match=r"process [0-9]+ is using it"):
            opened(tmp_path)

    def test_a_fenced_owner_writes_nothing(self, tmp_path: Path, state: SqlState) -> None:
        """Where the lock did not hold (a deleted file, a network disk), the older owner is fenced."""
        state.store("s", [sample("a", "cat")], [], {PLACE: 1})
        (tmp_path / "lock").unlink()
        usurper = opened(tmp_path)
        with pytest.raises(FencedOwner, match="another daemon has taken over"):
            state.store("s", [sample("b", "cat")], [], {PLACE: 2})
        with pytest.raises(FencedOwner):
            state.record_decision("s", DECISION)
        assert usurper.next_offsets("s") == {PLACE: 1}
        assert usurper.store("s", [sample("b", "cat")], [], {PLACE: 2}).stored == 1
        usurper.close()

    def test_read_only_reads_beside_the_writer(self, tmp_path: Path, state: SqlState) -> None:
        """It takes neither lock nor epoch, sees what is committed, and refuses to write."""
        state.store("s", [sample("a", "cat")], [], {PLACE: 1})
        reader = SqlState.open(tmp_path, holdout_fraction={}, clock=ManualClock(), read_only=True)
        assert reader.counts("s").stored == 1
        state.store("s", [sample("b", "cat")], [], {PLACE: 2})
        assert [s.id for s in reader.payloads("s", ["b", "a"])] == ["b", "a"]
        with pytest.raises(StateError, match="read-only"):
            reader.record_decision("s", DECISION)
        reader.close()

    def test_read_only_needs_a_state(self, tmp_path: Path) -> None:
        """A tool must not create an empty state by looking."""
        with pytest.raises(StateError, match="no state here"):
            SqlState.open(tmp_path, holdout_fraction={}, clock=ManualClock(), read_only=True)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("read_only", [False, True])
    def test_another_releases_state_is_refused(self, tmp_path: Path, read_only: bool) -> None:
        """A schema version that this release does not know is left alone."""
        opened(tmp_path).close()
        engine = sqlite_engine(tmp_path / "state.db")
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE owner SET schema_version = 99")
        engine.dispose()
        with pytest.raises(StateVersionMismatch, match="version 99"):
            SqlState.open(tmp_path, holdout_fraction={"s": 0.1}, clock=ManualClock(), read_only=read_only)

    def test_a_kill_keeps_samples_and_offset_consistent(self, tmp_path: Path) -> None:
        """Killed at any instruction, the offset tells exactly which samples are stored."""
        moments = random.Random(5)
        acknowledged = 0
        for _ in range(4):
            command = [sys.executable, "-m", "tests.support.storing_process", str(tmp_path)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for _ in range(moments.randint(1, 40)):
                    acknowledged = int(process.stdout.readline())
                process.send_signal(signal.SIGKILL)
            state = opened(tmp_path, fraction=0.2)
            offset = state.next_offsets("s")[PLACE]
            counts = state.counts("s")
            state.close()
            assert offset >= acknowledged
            assert (counts.stored, counts.dead_lettered) == (offset // 10 * 9, offset // 10)
            assert counts.duplicate == 0
