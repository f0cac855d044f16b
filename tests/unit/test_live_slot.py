"""The slot: residency, leases and the live pointer."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from daemon.errors import NotReady, UnknownGeneration
from daemon.metrics import Metrics
from daemon.serving.slot import Lease, LiveSlot
from tests.support.servables import LinearServable


def make_slot(max_resident: int = 2) -> LiveSlot:
    """Make an empty slot."""
    return LiveSlot("s", max_resident, Metrics())


def test_nothing_answers_before_the_first_publication() -> None:
    """An empty slot says that the stream has learnt nothing."""
    slot = make_slot()
    assert slot.live() is None
    with pytest.raises(NotReady, match="learnt nothing yet"):
        slot.acquire()


def test_a_lease_keeps_its_generation_through_a_swap() -> None:
    """A request that began on the old generation ends on it; a new one gets the new generation."""
    slot = make_slot()
    old, new = LinearServable(1), LinearServable(2)
    slot.publish(old, 1)
    with slot.acquire() as lease:
        report = slot.publish(new, 2)
        assert lease.servable is old
        with slot.acquire() as later:
            assert later.servable is new
    assert report.previous is not None
    assert (report.previous.number, report.live.number, report.retired) == (1, 2, ())
    assert 0 < report.pause_seconds < 0.5


def test_discarded_generations_leave_memory_with_their_last_lease() -> None:
    """No new request gets one, a request on one ends on it, and the live one cannot be discarded."""
    slot = make_slot(3)
    old, other, live = LinearServable(1), LinearServable(2), LinearServable(3)
    for number, servable in enumerate((old, other, live), start=1):
        slot.publish(servable, number)
    with slot.acquire(old.digest) as lease:
        slot.discard({old.digest, other.digest, "unknown"})
        assert lease.servable is old
        with pytest.raises(UnknownGeneration):
            slot.acquire(old.digest)
        assert not slot.drain(0.0)
    assert slot.drain(0.0)
    assert [ref.number for ref in slot.residents()] == [3]
    with pytest.raises(ValueError, match="is live"):
        slot.discard([live.digest])
    freed = weakref.ref(other)
    del other, servable
    gc.collect()
    assert freed() is None


def test_rollback_moves_the_pointer_to_the_very_same_object() -> None:
    """A resident generation goes live again without being built again."""
    slot = make_slot()
    old, new = LinearServable(1), LinearServable(2)
    slot.publish(old, 1)
    slot.publish(new, 2)
    slot.promote_resident(old.digest)
    with slot.acquire() as lease:
        assert lease.servable is old
    assert [ref.number for ref in slot.residents()] == [1, 2]


def test_a_generation_beyond_the_limit_is_freed_with_its_last_lease() -> None:
    """Nobody waits for the drain, and the memory goes as soon as the last request is answered."""
    slot = make_slot(max_resident=1)
    old = LinearServable(1)
    gone = weakref.ref(old)
    digest = old.digest
    slot.publish(old, 1)
    del old
    first, second = slot.acquire(), slot.acquire()
    assert slot.publish(LinearServable(2), 2).retired == (digest,)
    with pytest.raises(UnknownGeneration, match="resident: 2"):
        slot.acquire(digest)
    first.release()
    assert gone() is not None
    assert not slot.drain(0.0)
    second.release()
    gc.collect()
    assert gone() is None
    assert slot.drain(0.0)


def test_releasing_twice_counts_once() -> None:
    """A second release does not take another request's lease away."""
    slot = make_slot(max_resident=1)
    slot.publish(LinearServable(1), 1)
    first, second = slot.acquire(), slot.acquire()
    first.release()
    first.release()
    slot.publish(LinearServable(2), 2)
    assert second.servable.digest == LinearServable(1).digest
    with pytest.raises(AssertionError, match="after its release"):
        _ = first.servable
    second.release()


def test_versions_are_digests_or_numbers() -> None:
    """Both names of a resident generation lead to it, others do not."""
    slot = make_slot()
    servable = LinearServable(1)
    slot.publish(servable, 7)
    assert slot.resolve("7") == slot.resolve(servable.digest) == servable.digest
    for version in ("1", "07", servable.digest[:12], ""):
        with pytest.raises(UnknownGeneration):
            slot.resolve(version)


def test_metrics_show_residency_and_the_pointer() -> None:
    """Resident counts and bytes include what still drains; each swap observes one pause."""
    metrics = Metrics()
    slot = LiveSlot("s", 1, metrics)
    slot.publish(LinearServable(1), 1)
    lease = slot.acquire()
    slot.publish(LinearServable(2), 2)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"stream": "s", **labels})

    assert value("accrete_live_generation") == 2
    assert value("accrete_resident_generations") == 2
    assert value("accrete_resident_generation_bytes") == 2 * LinearServable(1).nbytes()
    assert value("accrete_swap_pause_seconds_count") == 2
    assert value("accrete_swap_duration_seconds_count", phase="publish") == 2
    assert value("accrete_swap_duration_seconds_count", phase="drain") is None
    lease.release()
    assert value("accrete_resident_generations") == 1
    assert value("accrete_swap_duration_seconds_count", phase="drain") == 1


def test_a_limit_below_one_is_refused() -> None:
    """The live generation itself needs a place."""
    with pytest.raises(ValueError, match="max_resident_generations is 0"):
        make_slot(0)


class SlotMachine(RuleBasedStateMachine):
    """Any order of publications, rollbacks, leases and releases keeps the slot's promises."""

    def __init__(self) -> None:
        super().__init__()
        self.slot = make_slot(max_resident=2)
        self.number = 0
        self.leases: list[tuple[Lease, int]] = []
        self.promoted: list[str] = []
        self.alive: list[tuple[str, weakref.ref[LinearServable]]] = []

    @rule(seed=st.integers(0, 4))
    def publish(self, seed: int) -> None:
        """Publish a servable, maybe one whose digest is resident."""
        self.number += 1
        servable = LinearServable(seed)
        self.alive.append((servable.digest, weakref.ref(servable)))
        self.slot.publish(servable, self.number)
        self._promoted(servable.digest)

    @precondition(lambda self: self.promoted)
    @rule(back=st.integers(0, 1))
    def promote(self, back: int) -> None:
        """Move the pointer to a resident generation."""
        digest = self.promoted[-1 - min(back, len(self.promoted) - 1)]
        self.slot.promote_resident(digest)
        self._promoted(digest)

    @precondition(lambda self: self.promoted)
    @rule(pinned=st.booleans())
    def acquire(self, pinned: bool) -> None:
        """Take a lease on the live generation or on the oldest resident."""
        digest = self.promoted[0] if pinned else None
        lease = self.slot.acquire(digest)
        assert lease.generation.digest == (digest or self.promoted[-1])
        self.leases.append((lease, id(lease.servable)))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Give any lease back."""
        lease, _ = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        lease.release()

    def _promoted(self, digest: str) -> None:
        self.promoted = [*(d for d in self.promoted if d != digest), digest][-2:]

    @invariant()
    def leased_generations_are_never_freed_or_changed(self) -> None:
        """Check that a lease sees the same object all its life."""
        for lease, identity in self.leases:
            assert id(lease.servable) == identity
            assert lease.servable.digest == lease.generation.digest

    @invariant()
    def residency_is_the_latest_promotions(self) -> None:
        """Check that the latest two promoted digests are resident."""
        assert [ref.digest for ref in self.slot.residents()] == self.promoted[::-1]

    @invariant()
    def nothing_else_stays_in_memory(self) -> None:
        """Check that what is neither resident nor leased is gone."""
        held = {identity for _, identity in self.leases}
        living = [ref() for _, ref in self.alive]
        assert sum(s is not None and id(s) not in held for s in living) <= 2


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_threads_never_see_a_freed_or_mixed_generation() -> None:
    """Under swaps without pause every lease answers as its own generation does, and all are freed."""
    slot = make_slot(max_resident=1)
    inputs = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    truth = {LinearServable(s).digest: LinearServable(s).predict(inputs).scores for s in range(4)}
    slot.publish(LinearServable(0), 1)
    stop = threading.Event()
    wrong: list[object] = []
    counts = [0, 0, 0]

    def ask(worker: int) -> None:
        while not stop.is_set():
            try:
                with slot.acquire() as lease:
                    scores = lease.servable.predict(inputs).scores
                    if not torch.equal(scores, truth[lease.generation.digest]):
                        wrong.append(lease.generation.digest)
            except BaseException as error:
                wrong.append(error)
                raise
            counts[worker] += 1

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for number in range(2, 502):
        slot.publish(LinearServable(number % 4), number)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert wrong == []
    assert all(counts)
    assert slot.drain(1.0)
