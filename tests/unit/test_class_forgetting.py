"""Forgetting a class in the daemon: what is accepted, what is deleted, and that a kill changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cl_engine.generation.content import ClassEntry
from daemon.errors import ForgettingRefused, LabelForgotten, UnknownClass, UnknownGeneration
from daemon.sessions.forgetting import FORGET, REMEMBER, ForgettingRequest
from daemon.sessions.job import DoneEvent, FailedEvent
from daemon.state.base import ClassState, SessionOutcome
from tests.support.session_rig import STREAM, SessionRig, evaluated, small_generation

PROMOTED, REJECTED = SessionOutcome.PROMOTED, SessionOutcome.REJECTED
FAILED, RUNNING = SessionOutcome.FAILED, SessionOutcome.RUNNING


def made(
    rig: SessionRig, number: int, classes: Mapping[int, str], method: str = "ncm", *, holds: bool = True
) -> str:
    """Let the trainer complete a generation of these classes; return its digest."""
    job = rig.trainer.jobs[-1]
    table = tuple(ClassEntry(class_id, label, 0) for class_id, label in classes.items())
    generation = replace(small_generation(number, job.parent), classes=table, method=method)
    digest = rig.generations.write(generation)
    measured, proved = evaluated([[1.0]], 1.0), {"holds": holds}
    rig.trainer.heard.append(
        DoneEvent(session=job.session, digest=digest, evaluation=measured, certificate=proved)
    )
    rig.ticks()
    return digest


def two_generations(rig: SessionRig, method: str = "ncm") -> tuple[str, str]:
    """Promote a generation of class a, then one of classes a and b."""
    rig.begin("a")
    first = made(rig, 0, {0: "a"}, method)
    rig.begin("b")
    return first, made(rig, 1, {0: "a", 1: "b"}, method)


def wish(rig: SessionRig, label: str, what: str = FORGET) -> str | None:
    """Ask, and turn the supervisor once."""
    request = ForgettingRequest(what, STREAM, label)
    rig.supervisor.wish(request, 0.0)
    rig.ticks()
    if request.error is not None:
        raise request.error
    return request.answer


def states(rig: SessionRig) -> list[ClassState]:
    """Return the classes' states by id."""
    return [record.state for record in rig.state.classes(STREAM)]


def held(rig: SessionRig) -> set[str]:
    """Return the digests of the generations on disk."""
    return set(rig.generations.digests())


def test_a_class_is_forgotten_from_the_wish_to_the_last_file(tmp_path: Path) -> None:
    """Accepted at once, carried out by the trainer, its samples and every generation with it deleted."""
    rig = SessionRig(tmp_path, events=True)
    first, second = two_generations(rig)
    assert "is being forgotten" in str(wish(rig, "b"))
    assert states(rig) == [ClassState.LIVE, ClassState.FORGETTING]
    job = rig.trainer.jobs[-1]
    assert (job.forgets, job.new_classes, job.parent, job.method) == (1, (), second, "ncm")
    assert len(rig.state.learnt_sample_ids(STREAM, 1)) == 3

    without = made(rig, 2, {0: "a"})
    assert states(rig) == [ClassState.LIVE, ClassState.FORGOTTEN]
    assert rig.state.learnt_sample_ids(STREAM, 1) == []
    assert len(rig.state.learnt_sample_ids(STREAM, 0)) == 3
    # The first generation never held the class: a rollback may still reach it.
    assert [g.digest for g in rig.state.generations(STREAM)] == [first, without]
    assert held(rig) == {first, without}
    assert [ref.digest for ref in rig.slot.residents()] == [without]
    with pytest.raises(UnknownGeneration, match="has no generation"):
        rig.live.rollback(STREAM, second)
    assert rig.sample("accrete_classes_forgotten_total") == 1
    rig.ticks()
    assert rig.sample("accrete_classes", state="forgotten") == 1
    told = [p.event for p in rig.state.pending_events(STREAM, 100)]
    assert [event.kind.value for event in told[-5:]] == [
        "session.started",
        "gate.judged",
        "session.promoted",
        "generation.published",
        "class.forgotten",
    ]
    assert told[-1].data == {
        "schema_version": 1,
        "stream": STREAM,
        "class_id": 1,
        "label": "b",
        "generation": without,
    }


def payload_bytes(directory: Path) -> bytes:
    """Return all payload files' bytes."""
    return b"".join(path.read_bytes() for path in sorted((directory / "payloads").iterdir()))


def test_the_payloads_are_overwritten_also_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the transaction and the files, the next start overwrites them; others stay."""
    rig = SessionRig(tmp_path)
    rig.store("a", 2)
    rig.store("b", 2)
    assert payload_bytes(tmp_path) == b"xxxx"
    with monkeypatch.context() as killed:
        killed.setattr(rig.state, "finish_erasures", lambda: None)
        wish(rig, "a")
    assert payload_bytes(tmp_path) == b"xxxx"
    assert states(rig)[0] is ClassState.FORGOTTEN
    rig.close()
    again = SessionRig(tmp_path, rig.clock)
    assert payload_bytes(tmp_path) == b"\0\0xx"
    wish(again, "b")
    assert payload_bytes(tmp_path) == bytes(4)


def test_a_class_that_was_never_learnt_costs_no_session(tmp_path: Path) -> None:
    """Its samples are deleted in one transaction; the trainer hears nothing of it."""
    rig = SessionRig(tmp_path, events=True)
    rig.store("a", 1)
    wish(rig, "a")
    assert rig.trainer.jobs == []
    assert states(rig) == [ClassState.FORGOTTEN]
    assert rig.state.buffers(STREAM) == []
    assert [p.event.kind.value for p in rig.state.pending_events(STREAM, 9)] == ["class.forgotten"]
    assert rig.sample("accrete_classes_forgotten_total") == 1


def test_a_forgotten_label_is_refused_until_it_is_remembered(tmp_path: Path) -> None:
    """The store writes nothing of a batch that holds it; remembered, the class has its old id."""
    rig = SessionRig(tmp_path)
    rig.store("a", 2)
    wish(rig, "a")
    assert rig.state.refused_labels(STREAM) == {"a"}
    before = rig.state.counts(STREAM)
    with pytest.raises(LabelForgotten, match=r"\['a'\]"):
        rig.store("a", 1)
    assert rig.state.counts(STREAM) == before
    wish(rig, "a", REMEMBER)
    assert rig.state.refused_labels(STREAM) == frozenset()
    rig.store("a", 3)
    assert [(b.class_id, b.train) for b in rig.state.buffers(STREAM)] == [(0, 3)]


def test_what_cannot_be_forgotten_is_refused(tmp_path: Path) -> None:
    """An unknown class, one that is forgotten already, the last one, and a method that mixes its classes."""
    rig = SessionRig(tmp_path)
    rig.begin("a")
    made(rig, 0, {0: "a"})
    with pytest.raises(UnknownClass, match="no class 'z'"):
        wish(rig, "z")
    with pytest.raises(ForgettingRefused, match="only one"):
        wish(rig, "a")
    with pytest.raises(ForgettingRefused, match="is live, not forgotten"):
        wish(rig, "a", REMEMBER)
    rig.store("b", 1)
    wish(rig, "b")
    with pytest.raises(ForgettingRefused, match="forgotten already"):
        wish(rig, "b")
    rig.begin("c")
    made(rig, 1, {0: "a", 2: "c"}, "finetune")
    with pytest.raises(ForgettingRefused, match=r"'finetune' cannot .* retrain the stream without class 'c'"):
        wish(rig, "c")
    assert states(rig) == [ClassState.LIVE, ClassState.FORGOTTEN, ClassState.LIVE]


def test_two_wishes_may_not_empty_the_generation(tmp_path: Path) -> None:
    """While one of two classes is being forgotten the other is the last."""
    rig = SessionRig(tmp_path)
    two_generations(rig)
    wish(rig, "b")
    assert "already" in str(wish(rig, "b"))
    with pytest.raises(ForgettingRefused, match="only one"):
        wish(rig, "a")


def test_a_wish_outlives_a_kill(tmp_path: Path) -> None:
    """Killed after the answer and again during the session: the next start takes it up each time."""
    rig = SessionRig(tmp_path)
    two_generations(rig)
    rig.begin("c")
    wish(rig, "b")
    assert rig.trainer.jobs[-1].forgets is None
    rig.close()
    again = SessionRig(tmp_path, rig.clock)
    again.live.restore(STREAM)
    again.ticks()
    assert again.trainer.jobs[-1].new_classes == (2,)
    made(again, 2, {0: "a", 1: "b", 2: "c"})
    again.ticks()
    assert again.trainer.jobs[-1].forgets == 1
    again.close()
    third = SessionRig(tmp_path, rig.clock)
    third.live.restore(STREAM)
    third.ticks()
    assert (third.trainer.jobs[-1].forgets, third.trainer.jobs[-1].attempt) == (1, 2)
    made(third, 3, {0: "a", 2: "c"})
    assert states(third) == [ClassState.LIVE, ClassState.FORGOTTEN, ClassState.LIVE]


def test_files_left_by_a_kill_are_deleted_at_the_next_start(tmp_path: Path) -> None:
    """Killed between the transaction and the files: what no list names any more is swept."""
    rig = SessionRig(tmp_path)
    first, second = two_generations(rig)
    wish(rig, "b")
    job = rig.trainer.jobs[-1]
    without = rig.generations.write(small_generation(2, job.parent))
    decision = rig.state.decisions(STREAM, 1)[0]
    rig.state.end_forgetting(
        STREAM,
        job.session,
        outcome=PROMOTED,
        at=rig.clock.now(),
        detail={},
        generation=without,
        removed=[second],
        decision=decision,
    )
    rig.close()
    assert held(rig) == {first, second, without}
    again = SessionRig(tmp_path, rig.clock)
    again.live.restore(STREAM)
    again.ticks()
    assert held(again) == {first, without}
    assert states(again)[1] is ClassState.FORGOTTEN


def test_a_class_that_is_just_being_learnt_is_forgotten_afterwards(tmp_path: Path) -> None:
    """The wish waits for the session that introduces the class, and takes it out again."""
    rig = SessionRig(tmp_path)
    rig.begin("a")
    made(rig, 0, {0: "a"})
    rig.begin("b")
    wish(rig, "b")
    made(rig, 1, {0: "a", 1: "b"})
    assert states(rig)[1] is ClassState.FORGETTING
    rig.ticks()
    assert rig.trainer.jobs[-1].forgets == 1
    made(rig, 2, {0: "a"})
    assert states(rig)[1] is ClassState.FORGOTTEN


def test_a_class_of_a_session_that_fails_is_erased(tmp_path: Path) -> None:
    """No generation ever held it, so its samples are all there is to delete."""
    rig = SessionRig(tmp_path)
    rig.begin("a")
    wish(rig, "a")
    rig.trainer.heard = [FailedEvent(session=0, kind="Diverged", message="nan")]
    rig.ticks(2)
    assert len(rig.trainer.jobs) == 1
    assert states(rig) == [ClassState.FORGOTTEN]


@pytest.mark.parametrize("how", ["certificate", "trainer"])
def test_a_forgetting_that_fails_leaves_everything_as_it_was(tmp_path: Path, how: str) -> None:
    """A broken certificate or an error in the trainer: the class is live again, its samples are there."""
    rig = SessionRig(tmp_path)
    first, second = two_generations(rig)
    wish(rig, "b")
    if how == "certificate":
        made(rig, 2, {0: "a"}, holds=False)
        assert "certificate does not hold" in rig.state.decisions(STREAM, 1)[0].reason
    else:
        rig.trainer.heard = [FailedEvent(session=2, kind="ValueError", message="not those")]
        rig.ticks()
    rig.ticks(5)
    assert rig.outcomes() == [PROMOTED, PROMOTED, REJECTED if how == "certificate" else FAILED]
    assert states(rig) == [ClassState.LIVE, ClassState.LIVE]
    assert len(rig.state.learnt_sample_ids(STREAM, 1)) == 3
    assert held(rig) == {first, second}
    assert rig.state.refused_labels(STREAM) == frozenset()
    assert len(rig.trainer.jobs) == 3


def test_a_rollback_meanwhile_stands_and_the_wish_waits(tmp_path: Path) -> None:
    """Once the newest generation is live again the class is taken out of it."""
    rig = SessionRig(tmp_path)
    _, second = two_generations(rig)
    wish(rig, "b")
    rig.live.rollback(STREAM, "1")
    made(rig, 2, {0: "a"})
    rig.ticks(5)
    assert len(rig.trainer.jobs) == 3
    assert states(rig)[1] is ClassState.FORGETTING
    rig.live.rollback(STREAM, second)
    rig.supervisor.notify(STREAM)
    rig.ticks()
    assert rig.trainer.jobs[-1].forgets == 1
    made(rig, 3, {0: "a"})
    assert states(rig)[1] is ClassState.FORGOTTEN
