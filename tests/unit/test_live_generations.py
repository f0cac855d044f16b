"""Moving the live pointer: restore, promote, roll back, and what a failure leaves as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.errors import SwapError, UnknownGeneration
from daemon.live import accuracies
from tests.support.session_rig import STREAM, SessionRig, small_generation


def live_digests(rig: SessionRig) -> tuple[str | None, str | None]:
    """Return what the state and what the slot say is live."""
    durable, serving = rig.state.live(STREAM), rig.slot.live()
    return (None if durable is None else durable.digest, None if serving is None else serving.digest)


def test_before_the_first_promotion_nothing_is_restored(tmp_path: Path) -> None:
    """A new stream starts without a generation, and that is no error."""
    rig = SessionRig(tmp_path)
    assert rig.live.restore(STREAM) is None
    assert live_digests(rig) == (None, None)


def test_restore_serves_what_the_state_says(tmp_path: Path) -> None:
    """After a restart the same generation answers, with its number and its metrics."""
    rig = SessionRig(tmp_path)
    rig.promote(0, "a")
    digest = rig.promote(1, "b")
    rig.close()
    again = SessionRig(tmp_path, rig.clock)
    record = again.live.restore(STREAM)
    assert record is not None
    assert record.number == 2
    assert live_digests(again) == (digest, digest)
    assert again.trainer.jobs == []
    assert again.sample("accrete_live_generation") == 2
    assert again.sample("accrete_accuracy_ratio", kind="last") == 1.0
    assert again.sample("accrete_certificate_ok") == 1
    labels = {"generation": "2", "digest": digest, "method": "ncm"}
    assert again.sample("accrete_generation_info", **labels) == 1


def test_restore_of_a_broken_generation_is_an_error(tmp_path: Path) -> None:
    """The daemon must not answer with something else than what was live."""
    rig = SessionRig(tmp_path)
    digest = rig.promote(0, "a")
    rig.close()
    again = SessionRig(tmp_path, rig.clock)
    again.runtime.broken.add(digest)
    with pytest.raises(SwapError, match=digest):
        again.live.restore(STREAM)


def test_the_durable_pointer_moves_after_the_build_and_before_the_publication(tmp_path: Path) -> None:
    """At the commit the generation is built, and requests are still answered by the old one."""
    rig = SessionRig(tmp_path)
    first = rig.promote(0, "a")
    second = rig.generations.write(small_generation(1, first))
    seen = []

    def commit() -> None:
        seen.append((second in rig.runtime.built, live_digests(rig)))
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        rig.live.promote(STREAM, second, commit)
    assert seen == [(True, (first, first))]
    assert live_digests(rig) == (first, first)
    assert [ref.digest for ref in rig.slot.residents()] == [first]
    assert rig.sample("accrete_swaps_total", outcome="promoted") == 1


def test_a_generation_that_cannot_be_built_is_never_committed(tmp_path: Path) -> None:
    """The commit is not called, and the failed swap is counted."""
    rig = SessionRig(tmp_path)
    first = rig.promote(0, "a")
    rig.runtime.broken.add("broken")
    with pytest.raises(SwapError):
        rig.live.promote(STREAM, "broken", lambda: pytest.fail("committed"))
    assert live_digests(rig) == (first, first)
    assert rig.sample("accrete_swaps_total", outcome="failed") == 1


def test_rollback_to_a_resident_generation_loads_nothing(tmp_path: Path) -> None:
    """Back and forth between two resident generations, by default, number and digest."""
    rig = SessionRig(tmp_path)
    first, second = rig.promote(0, "a"), rig.promote(1, "b")
    built = list(rig.runtime.built)
    assert rig.live.rollback(STREAM, None).digest == first
    assert live_digests(rig) == (first, first)
    assert rig.live.rollback(STREAM, "2").digest == second
    assert rig.live.rollback(STREAM, first).number == 1
    assert rig.runtime.built == built
    assert rig.sample("accrete_swaps_total", outcome="rolled_back") == 3
    assert rig.sample("accrete_live_generation") == 1
    assert rig.state.decisions(STREAM, 1)[0].kind == "rollback"


def test_rollback_beyond_residency_loads_the_generation(tmp_path: Path) -> None:
    """With two resident generations the first of three is built again."""
    rig = SessionRig(tmp_path)
    first = rig.promote(0, "a")
    rig.promote(1, "b")
    rig.promote(2, "c")
    rig.live.rollback(STREAM, "1")
    assert rig.runtime.built.count(first) == 2
    assert live_digests(rig) == (first, first)


def test_rollback_to_a_generation_that_does_not_load_changes_nothing(tmp_path: Path) -> None:
    """Neither pointer moves, and no decision is recorded."""
    rig = SessionRig(tmp_path)
    first = rig.promote(0, "a")
    rig.promote(1, "b")
    third = rig.promote(2, "c")
    rig.runtime.broken.add(first)
    decisions = rig.state.decisions(STREAM, 100)
    with pytest.raises(SwapError):
        rig.live.rollback(STREAM, "1")
    assert live_digests(rig) == (third, third)
    assert rig.state.decisions(STREAM, 100) == decisions


def test_rollback_to_nothing_says_what_there_is(tmp_path: Path) -> None:
    """An unknown number names the known ones; the first generation has none before it."""
    rig = SessionRig(tmp_path)
    rig.promote(0, "a")
    with pytest.raises(UnknownGeneration, match="no generation '9'; it has 1"):
        rig.live.rollback(STREAM, "9")
    with pytest.raises(UnknownGeneration, match="no generation before the live one"):
        rig.live.rollback(STREAM, None)


def test_only_the_live_generation_is_described(tmp_path: Path) -> None:
    """The labels of the generation before are taken away, so that a join finds one row."""
    rig = SessionRig(tmp_path)
    rig.promote(0, "a")
    rig.promote(1, "b")
    [family] = [m for m in rig.metrics.registry.collect() if m.name == "accrete_generation_info"]
    assert [sample.labels["generation"] for sample in family.samples] == ["2"]


def test_accuracies_leave_out_what_was_not_measured() -> None:
    """A generation without holdout has no figure instead of a nought."""
    assert accuracies({"a_t": None, "a_bar": 0.5, "class_accuracy": {}}) == {"average": 0.5}
    assert accuracies({"a_t": 0.9, "a_bar": 0.8, "class_accuracy": {"0": 1.0, "1": 0.25}}) == {
        "last": 0.9,
        "average": 0.8,
        "min_class": 0.25,
    }
