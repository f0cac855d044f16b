"""When a session starts: every reason, at its boundary."""

from __future__ import annotations

import pytest

from daemon import triggers
from daemon.settings import TriggerSettings
from daemon.state.base import (
    ClassBuffer,
    ClassState,
    GenerationRecord,
    SessionOutcome,
    SessionRecord,
)

SETTINGS = TriggerSettings(
    min_samples_per_class=5, quiet_seconds=10.0, max_wait_seconds=100.0, max_new_classes=3
)


def buffer(
    class_id: int,
    train: int = 5,
    *,
    first: float = 0.0,
    last: float = 0.0,
    state: ClassState = ClassState.PENDING,
) -> ClassBuffer:
    """Build what has arrived for one class."""
    return ClassBuffer(class_id, f"class-{class_id}", state, train, 1, first, last)


def session(
    outcome: SessionOutcome,
    classes: tuple[int, ...] = (0,),
    *,
    started: float = 50.0,
    retry: bool = False,
    number: int = 0,
) -> SessionRecord:
    """Build a session that took ten seconds."""
    ended = None if outcome is SessionOutcome.RUNNING else started + 10.0
    detail = {triggers.RETRY: True} if retry else {}
    return SessionRecord(number, classes, outcome, 1, started, ended, None, None, 1, "sgds", {}, detail)


def generation(number: int) -> GenerationRecord:
    """Build one of the stream's generations."""
    return GenerationRecord(number, f"digest-{number}", number - 1, 0.0, 1.0)


def test_nothing_pending_is_no_new_class() -> None:
    """A stream without new classes starts nothing, even with unlearnt samples of a live class."""
    decision = triggers.decide_new_classes(SETTINGS, [buffer(0, 50, state=ClassState.LIVE)], 1000.0)
    assert (decision.fired, decision.reason) == (False, "no new class")


def test_too_few_samples_wait() -> None:
    """One sample below the least number does not start a session, however long it waits."""
    decision = triggers.decide_new_classes(SETTINGS, [buffer(0, 4)], 1_000_000.0)
    assert not decision.fired
    assert decision.facts == {"pending": 1, "most_samples": 4}
    assert "5 training samples" in decision.reason


@pytest.mark.parametrize(("now", "fires"), [(9.999, False), (10.0, True)])
def test_quiet_fires_at_its_bound(now: float, fires: bool) -> None:
    """Quiet for exactly `quiet_seconds` starts the session, a moment less does not."""
    decision = triggers.decide_new_classes(SETTINGS, [buffer(0)], now)
    assert decision.fired is fires
    assert decision.classes == (0,)


def test_an_incomplete_class_keeps_it_from_being_quiet() -> None:
    """Samples of a class that is not ready yet count as noise: it may belong to the same session."""
    buffers = [buffer(0), buffer(1, 1, first=8.0, last=8.0)]
    assert not triggers.decide_new_classes(SETTINGS, buffers, 12.0).fired
    decision = triggers.decide_new_classes(SETTINGS, buffers, 18.0)
    assert decision.fired
    assert decision.classes == (0,)


@pytest.mark.parametrize(("now", "fires"), [(99.9, False), (100.0, True)])
def test_maximum_wait_fires_though_samples_still_arrive(now: float, fires: bool) -> None:
    """A class that has waited `max_wait_seconds` starts the session without quiet."""
    decision = triggers.decide_new_classes(SETTINGS, [buffer(0, last=now)], now)
    assert decision.fired is fires
    assert ("has waited" in decision.reason) is fires


@pytest.mark.parametrize(("ready", "fires"), [(2, False), (3, True)])
def test_a_full_session_starts_at_once(ready: int, fires: bool) -> None:
    """As many ready classes as one session takes start it without waiting for quiet."""
    decision = triggers.decide_new_classes(SETTINGS, [buffer(i) for i in range(ready)], 0.0)
    assert decision.fired is fires


def test_a_decision_is_recorded_with_its_numbers() -> None:
    """The log's entry has the classes and the facts behind the reason."""
    record = triggers.decide_new_classes(SETTINGS, [buffer(3, 6)], 10.0).record(77.0)
    assert (record.at, record.kind, record.policy, record.fired) == (77.0, "trigger", "new_classes", True)
    assert record.facts == {"classes": [3], "quiet_seconds": 10.0, "waited_seconds": 10.0, "samples": 6}


@pytest.mark.parametrize(
    ("buffers", "fires", "classes"),
    [
        ([], False, ()),
        ([buffer(0, 1)], False, ()),
        ([buffer(0, 2)], True, (0,)),
        ([buffer(0, 1, state=ClassState.LIVE)], True, ()),
        ([buffer(0, 0, state=ClassState.LIVE)], False, ()),
        ([buffer(0, 1), buffer(1, 2), buffer(2, 9, state=ClassState.LIVE)], True, (1,)),
    ],
)
def test_flush_takes_what_can_be_learnt(
    buffers: list[ClassBuffer], fires: bool, classes: tuple[int, ...]
) -> None:
    """A flush needs two samples of a new class, or one of a live class."""
    decision = triggers.decide_flush(buffers)
    assert (decision.fired, decision.classes) == (fires, classes)


@pytest.mark.parametrize("outcome", [SessionOutcome.REJECTED, SessionOutcome.FAILED])
def test_an_unsuccessful_session_waits_for_new_samples(outcome: SessionOutcome) -> None:
    """The same samples do not start the session again; one that arrived after its start does."""
    ended = [session(outcome)]
    assert triggers.without_unsuccessful([buffer(0, last=50.0)], ended) == []
    during = buffer(0, last=55.0)
    assert triggers.without_unsuccessful([during], ended) == [during]
    after = buffer(0, last=60.5)
    assert triggers.without_unsuccessful([after], ended) == [after]


def test_only_the_classes_of_the_unsuccessful_session_wait() -> None:
    """Another class is free to start, and so is one whose later session is worth a retry."""
    buffers = [buffer(0), buffer(1), buffer(2)]
    sessions = [
        session(SessionOutcome.REJECTED, (0, 2), number=0),
        session(SessionOutcome.REJECTED, (2,), started=70.0, retry=True, number=1),
    ]
    assert [b.class_id for b in triggers.without_unsuccessful(buffers, sessions)] == [1, 2]


def test_a_rollback_holds_sessions_until_the_newest_is_live_again() -> None:
    """While an older generation is live no session may build on it."""
    known = [generation(1), generation(2)]
    held = triggers.hold_after_rollback(known[0], known)
    assert held is not None
    assert not held.fired
    assert "rolled back to generation 1" in held.reason
    assert triggers.hold_after_rollback(known[1], known) is None
    assert triggers.hold_after_rollback(None, []) is None
