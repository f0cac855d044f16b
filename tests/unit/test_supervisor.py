"""The supervisor turned by hand: what it starts, how sessions end, and that nothing restarts in a loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon import triggers
from daemon.errors import FencedOwner, UnknownGeneration
from daemon.sessions.job import FailedEvent, ProgressEvent, checkpoint_directory
from daemon.state.base import ClassState, SessionOutcome
from tests.support.session_rig import STREAM, SessionRig, small_generation

PROMOTED, REJECTED = SessionOutcome.PROMOTED, SessionOutcome.REJECTED
FAILED, RUNNING = SessionOutcome.FAILED, SessionOutcome.RUNNING


def test_a_session_from_samples_to_promotion(tmp_path: Path) -> None:
    """Enough samples and quiet start a job; progress is shown; the result goes live and is recorded."""
    rig = SessionRig(tmp_path)
    rig.store("a", 3)
    rig.store("b", 3)
    rig.ticks()
    assert rig.trainer.jobs == []
    rig.clock.advance(10.0)
    rig.ticks()
    [job] = rig.trainer.jobs
    assert (job.stream, job.session, job.attempt, job.new_classes) == (STREAM, 0, 1, (0, 1))
    assert (job.parent, job.method, job.seed) == (None, "sgds", 1993)
    assert rig.sample("accrete_session_running") == 1

    rig.trainer.heard = [ProgressEvent(session=0, phase="explore", done=0.4)]
    rig.ticks()
    running = rig.supervisor.running(STREAM)
    assert running is not None
    assert running[1] is not None
    assert (running[0].id, running[1].phase) == (0, "explore")
    assert rig.sample("accrete_session_progress_ratio") == 0.4
    assert rig.supervisor.running("another") is None

    rig.clock.advance(5.0)
    digest = rig.finish(0)
    assert rig.supervisor.running(STREAM) is None
    live = rig.slot.live()
    assert live is not None
    assert (live.digest, live.number) == (digest, 1)
    [session] = rig.state.sessions(STREAM)
    assert (session.outcome, session.generation) == (PROMOTED, digest)
    assert all(c.state is ClassState.LIVE for c in rig.state.classes(STREAM))
    kinds = [(d.kind, d.fired) for d in rig.state.decisions(STREAM, 10)]
    assert kinds == [("gate", True), ("trigger", True), ("trigger", False)]
    assert rig.sample("accrete_sessions_total", outcome="promoted") == 1
    assert rig.sample("accrete_session_duration_seconds_sum") >= 5.0
    assert rig.sample("accrete_session_running") == 0
    assert rig.sample("accrete_session_progress_ratio") == 0
    rig.ticks()
    assert rig.sample("accrete_classes", state="live") == 2
    assert rig.sample("accrete_buffered_samples", state="ready") == 0


def test_the_next_session_builds_on_the_live_generation(tmp_path: Path) -> None:
    """The parent of the second session is the digest that the first one made."""
    rig = SessionRig(tmp_path)
    first = rig.promote(0, "a")
    rig.begin("b")
    assert rig.trainer.jobs[-1].parent == first
    assert rig.trainer.jobs[-1].new_classes == (1,)


def test_a_rejected_session_waits_for_new_samples(tmp_path: Path) -> None:
    """The gate's reason is recorded, the old generation answers on, and only a new sample tries again."""
    rig = SessionRig(tmp_path, gate={"min_accuracy": 0.9})
    first = rig.promote(0, "a")
    rig.begin("b")
    rig.finish(1, [[1.0], [0.5, 0.5]], a_t=0.5)
    assert rig.outcomes() == [PROMOTED, REJECTED]
    live = rig.slot.live()
    assert live is not None
    assert live.digest == first
    assert "min_accuracy 0.9" in str(rig.state.sessions(STREAM)[1].detail["reason"])
    assert not rig.state.decisions(STREAM, 1)[0].fired
    rig.clock.advance(1000.0)
    rig.ticks(50)
    assert len(rig.trainer.jobs) == 2
    assert "did not succeed" in rig.state.decisions(STREAM, 1)[0].reason
    rig.store("b", 1)
    rig.clock.advance(10.0)
    rig.ticks()
    assert len(rig.trainer.jobs) == 3
    assert len(rig.state.session_sample_ids(STREAM, 2)) == 4


def test_unlearnt_samples_of_a_live_class_do_not_hide_why_a_class_waits(tmp_path: Path) -> None:
    """The reason stays that the last session did not succeed while a known class gets more samples."""
    rig = SessionRig(tmp_path, gate={"min_accuracy": 0.9})
    rig.promote(0, "a")
    rig.begin("b")
    rig.finish(1, [[1.0], [0.5, 0.5]], a_t=0.5)
    rig.store("a", 1)
    rig.ticks(3)
    assert "did not succeed" in rig.state.decisions(STREAM, 1)[0].reason


def test_samples_that_came_during_a_rejected_session_try_again(tmp_path: Path) -> None:
    """They were no part of it, so the next session may end differently."""
    rig = SessionRig(tmp_path, gate={"min_accuracy": 0.9})
    rig.begin("a")
    rig.clock.advance(1.0)
    rig.store("a", 2)
    rig.clock.advance(1.0)
    rig.finish(0, a_t=0.5)
    rig.clock.advance(10.0)
    rig.ticks(2)
    assert len(rig.trainer.jobs) == 2
    assert len(rig.state.session_sample_ids(STREAM, 1)) == 5


def test_a_failed_session_is_not_tried_again_by_itself(tmp_path: Path) -> None:
    """What the trainer says cannot be trained ends as failed, once; a flush tries it again."""
    rig = SessionRig(tmp_path)
    rig.begin("a")
    rig.trainer.heard = [FailedEvent(session=0, kind="Diverged", message="the loss is nan")]
    rig.ticks()
    rig.clock.advance(1000.0)
    rig.ticks(20)
    assert rig.outcomes() == [FAILED]
    assert rig.state.sessions(STREAM)[0].detail == {"kind": "Diverged", "reason": "the loss is nan"}
    assert len(rig.trainer.jobs) == 1
    rig.supervisor.flush(STREAM, 0.0)
    rig.ticks()
    assert rig.outcomes() == [FAILED, RUNNING]


def test_events_of_another_session_are_ignored(tmp_path: Path) -> None:
    """A late word of an earlier job does not end the present one."""
    rig = SessionRig(tmp_path)
    rig.begin("a")
    rig.trainer.heard = [FailedEvent(session=7, kind="Diverged", message="stale")]
    rig.ticks()
    assert rig.outcomes() == [RUNNING]


def test_a_crash_is_retried_and_then_given_up(tmp_path: Path) -> None:
    """The session is submitted `max_attempts` times in all; then it fails, naming the last crash."""
    rig = SessionRig(tmp_path, trainer={"max_attempts": 3})
    rig.begin("a")
    for attempt in (2, 3):
        rig.trainer.crash = "signal 9"
        rig.ticks()
        assert rig.trainer.jobs[-1].attempt == attempt
    rig.trainer.crash = "exit status 1"
    rig.ticks()
    rig.ticks(20)
    assert len(rig.trainer.jobs) == 3
    [session] = rig.state.sessions(STREAM)
    assert session.outcome is FAILED
    assert "crashed 3 times, at last with exit status 1" in str(session.detail["reason"])
    assert rig.sample("accrete_session_restarts_total") == 2


def test_a_trainer_that_says_nothing_is_ended_and_its_session_resumed(tmp_path: Path) -> None:
    """Each word starts the wait anew; silence for `stall_seconds` counts as a crash."""
    rig = SessionRig(tmp_path, trainer={"stall_seconds": 100.0, "max_attempts": 2})
    rig.begin("a")
    rig.clock.advance(99.0)
    rig.trainer.heard = [ProgressEvent(session=0, phase="explore", done=0.1)]
    rig.ticks()
    rig.clock.advance(99.0)
    rig.ticks()
    assert (rig.trainer.stopped, len(rig.trainer.jobs)) == (0, 1)
    rig.clock.advance(1.0)
    rig.ticks()
    assert (rig.trainer.stopped, rig.trainer.jobs[-1].attempt) == (1, 2)
    assert rig.sample("accrete_trainer_stalls_total") == 1
    rig.clock.advance(100.0)
    rig.ticks()
    [session] = rig.state.sessions(STREAM)
    assert session.outcome is FAILED
    assert "crashed 2 times, at last with no progress for 100 s" in str(session.detail["reason"])
    assert rig.sample("accrete_trainer_stalls_total") == 2


def test_old_generations_are_deleted(tmp_path: Path) -> None:
    """The newest `keep_generations` stay on disk, and what is in memory; a rollback finds just those."""
    rig = SessionRig(tmp_path, stream={"keep_generations": 3})
    digests = [rig.promote(number, label) for number, label in enumerate("abcde")]
    assert [g.number for g in rig.state.generations(STREAM)] == [3, 4, 5]
    assert set(rig.generations.digests()) == set(digests[2:])
    rig.live.rollback(STREAM, "3")
    with pytest.raises(UnknownGeneration, match="it has 3, 4, 5"):
        rig.live.rollback(STREAM, "2")


@pytest.mark.parametrize("keep", [1, 2])
def test_what_answers_or_is_in_memory_is_never_deleted(tmp_path: Path, keep: int) -> None:
    """An older generation that is live stays, however few are kept; so does the one before it in memory."""
    rig = SessionRig(tmp_path, stream={"keep_generations": keep})
    first, second = rig.promote(0, "a"), rig.promote(1, "b")
    rig.live.rollback(STREAM, first)
    rig.live.prune(STREAM, keep)
    rig.live.sweep()
    assert set(rig.generations.digests()) == {first, second}
    live = rig.state.live(STREAM)
    assert live is not None
    assert live.digest == first


def test_an_ended_session_leaves_no_checkpoint(tmp_path: Path) -> None:
    """A failed one's would never be read again; a running one's is what it resumes from."""
    rig = SessionRig(tmp_path)
    rig.begin("a")
    places = [checkpoint_directory(tmp_path, STREAM, session) for session in (0, 1)]
    for place in places:
        place.mkdir(parents=True)
    rig.ticks(3)
    assert [place.exists() for place in places] == [True, True]
    rig.trainer.heard = [FailedEvent(session=0, kind="Diverged", message="nan")]
    rig.ticks()
    assert [place.exists() for place in places] == [False, True]


def test_a_rejected_generation_leaves_no_files(tmp_path: Path) -> None:
    """Nobody can ever ask for it."""
    rig = SessionRig(tmp_path, gate={"min_accuracy": 0.9})
    first = rig.promote(0, "a")
    rig.begin("b")
    rig.finish(1, [[1.0], [0.5, 0.5]], a_t=0.5)
    assert rig.generations.digests() == [first]


def test_crashes_are_counted_per_session(tmp_path: Path) -> None:
    """A success between two crashes gives the next session all of its attempts."""
    rig = SessionRig(tmp_path, trainer={"max_attempts": 2})
    rig.begin("a")
    rig.trainer.crash = "signal 9"
    rig.ticks()
    rig.finish(0)
    rig.begin("b")
    rig.trainer.crash = "signal 9"
    rig.ticks()
    assert rig.outcomes() == [PROMOTED, RUNNING]
    rig.finish(1, [[1.0], [1.0, 1.0]])
    assert rig.outcomes() == [PROMOTED, PROMOTED]


def test_an_interrupted_session_is_resumed_at_the_start(tmp_path: Path) -> None:
    """The same session, with one more attempt and the same samples, goes before any new decision."""
    rig = SessionRig(tmp_path)
    rig.begin("a")
    rig.close()
    again = SessionRig(tmp_path, rig.clock)
    again.store("b", 3)
    again.clock.advance(10.0)
    again.ticks()
    [job] = again.trainer.jobs
    assert (job.session, job.attempt, job.new_classes) == (0, 2, (0,))
    again.finish(0)
    again.ticks()
    assert again.outcomes() == [PROMOTED, RUNNING]
    assert again.trainer.jobs[-1].new_classes == (1,)


def test_a_rollback_during_a_session_rejects_it_and_tries_again_later(tmp_path: Path) -> None:
    """The operator's rollback stands; once the newest generation is live again the session is repeated."""
    rig = SessionRig(tmp_path)
    first = rig.promote(0, "a")
    second = rig.promote(1, "b")
    rig.begin("c")
    rig.live.rollback(STREAM, None)
    rig.supervisor.notify(STREAM)
    rig.finish(2)
    assert rig.outcomes() == [PROMOTED, PROMOTED, REJECTED]
    live = rig.slot.live()
    assert live is not None
    assert live.digest == first
    assert rig.state.sessions(STREAM)[2].detail[triggers.RETRY] is True
    rig.clock.advance(1000.0)
    rig.ticks(20)
    assert len(rig.trainer.jobs) == 3
    assert "rolled back to generation 1" in rig.state.decisions(STREAM, 1)[0].reason
    rig.live.rollback(STREAM, "2")
    rig.supervisor.notify(STREAM)
    rig.ticks()
    assert len(rig.trainer.jobs) == 4
    assert rig.trainer.jobs[-1].parent == second


def test_a_flush_during_a_session_is_queued(tmp_path: Path) -> None:
    """It gets no answer in time, and starts its session as soon as the other one has ended."""
    rig = SessionRig(tmp_path)
    rig.begin("a")
    rig.store("b", 2)
    assert rig.supervisor.flush(STREAM, 5.0) is None
    rig.ticks()
    assert len(rig.trainer.jobs) == 1
    rig.finish(0)
    rig.ticks()
    assert rig.trainer.jobs[-1].new_classes == (1,)
    assert rig.state.decisions(STREAM, 1)[0].policy == triggers.FLUSH


def test_a_flush_without_samples_starts_nothing(tmp_path: Path) -> None:
    """The decision and its reason are recorded all the same."""
    rig = SessionRig(tmp_path)
    rig.supervisor.flush(STREAM, 0.0)
    rig.ticks(3)
    assert rig.trainer.jobs == []
    flushes = [d for d in rig.state.decisions(STREAM, 10) if d.policy == triggers.FLUSH]
    assert [(d.fired, d.reason) for d in flushes] == [
        (False, "nothing to learn: no unlearnt samples are buffered")
    ]
    assert rig.sample("accrete_trigger_decisions_total", policy="flush", fired="false") == 1


def test_a_flush_after_a_rollback_is_refused(tmp_path: Path) -> None:
    """A session on the older generation would lose the newer one's classes."""
    rig = SessionRig(tmp_path)
    rig.promote(0, "a")
    rig.promote(1, "b")
    rig.live.rollback(STREAM, "1")
    rig.store("c", 5)
    rig.supervisor.flush(STREAM, 0.0)
    rig.ticks()
    assert len(rig.trainer.jobs) == 2
    latest = rig.state.decisions(STREAM, 1)[0]
    assert (latest.policy, latest.fired) == (triggers.FLUSH, False)


def test_a_generation_that_cannot_be_served_fails_its_session(tmp_path: Path) -> None:
    """The old generation answers on, the failed swap is counted, and nothing is tried in a loop."""
    rig = SessionRig(tmp_path)
    first = rig.promote(0, "a")
    rig.begin("b")
    rig.runtime.broken.add(small_generation(1, first).digest)
    rig.finish(1)
    rig.clock.advance(1000.0)
    rig.ticks(20)
    assert rig.outcomes() == [PROMOTED, FAILED]
    assert len(rig.trainer.jobs) == 2
    live = rig.state.live(STREAM)
    assert live is not None
    assert live.digest == first
    assert rig.sample("accrete_swaps_total", outcome="failed") == 1


def test_an_idle_trainer_is_released(tmp_path: Path) -> None:
    """Its memory is given back after `idle_seconds` without a session, and not before."""
    rig = SessionRig(tmp_path, trainer={"idle_seconds": 100.0})
    rig.promote(0, "a")
    rig.ticks()
    rig.clock.advance(99.0)
    rig.ticks()
    assert rig.trainer.released == 0
    rig.clock.advance(1.0)
    rig.ticks()
    assert rig.trainer.released == 1


def test_an_unchanged_reason_is_recorded_once(tmp_path: Path) -> None:
    """Many turns without news leave one entry in the decision log."""
    rig = SessionRig(tmp_path)
    rig.store("a", 1)
    rig.ticks(40)
    assert len(rig.state.decisions(STREAM, 100)) == 1


def test_a_fault_ends_the_thread_and_stops_the_trainer(tmp_path: Path) -> None:
    """A daemon that lost its state must not go on deciding; the fault is there for the probes."""
    rig = SessionRig(tmp_path)
    rig.close()
    usurper = SessionRig(tmp_path, rig.clock)
    rig.supervisor.start()
    assert rig.supervisor.join(20.0)
    assert isinstance(rig.supervisor.failed, FencedOwner)
    assert rig.trainer.stopped == 1
    usurper.close()


def test_stop_ends_the_thread_and_leaves_the_session_running(tmp_path: Path) -> None:
    """A running session keeps its outcome, for the next start to take it up."""
    rig = SessionRig(tmp_path)
    rig.begin("a")
    rig.supervisor.stop()
    rig.supervisor.start()
    assert rig.supervisor.join(20.0)
    assert rig.supervisor.failed is None
    assert rig.trainer.stopped == 1
    assert rig.outcomes() == [RUNNING]


@pytest.mark.parametrize("count", [1, 2])
def test_a_flush_with_too_few_samples(tmp_path: Path, count: int) -> None:
    """Two samples of a new class can be learnt, one cannot."""
    rig = SessionRig(tmp_path)
    rig.store("a", count)
    rig.supervisor.flush(STREAM, 0.0)
    rig.ticks()
    assert len(rig.trainer.jobs) == (1 if count == 2 else 0)
