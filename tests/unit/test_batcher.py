"""The batcher: what is computed together, and who gets which answer."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_engine.learners.base import Prediction
from daemon.errors import Overloaded, RequestTimeout
from daemon.metrics import Metrics
from daemon.serving.batcher import Batcher, Waiting, choose_batch
from daemon.serving.slot import LiveSlot
from daemon.settings import ServingSettings
from tests.support.servables import FailingServable, HeldServable, LinearServable

if TYPE_CHECKING:
    from collections.abc import Iterator

METRICS = Metrics()


def slot_with(servable: LinearServable, stream: str = "s") -> LiveSlot:
    """Make a slot that answers with a servable."""
    slot = LiveSlot(stream, 2, METRICS)
    slot.publish(servable, 1)
    return slot


def rows(n: int, value: int = 7) -> torch.Tensor:
    """Make n equal input rows."""
    return torch.full((n, 3, 4, 4), value, dtype=torch.uint8)


@contextmanager
def running(**settings: float) -> Iterator[Batcher]:
    """Run a batcher with some serving settings."""
    batcher = Batcher(ServingSettings.model_validate(settings), Metrics())
    batcher.start()
    try:
        yield batcher
    finally:
        batcher.stop()
        assert batcher.join(20)


SLOTS = [slot_with(LinearServable(0), "a"), slot_with(LinearServable(1), "b")]


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6)), min_size=1, max_size=12),
    st.integers(1, 8),
    st.sampled_from([0.0, 5.0]),
)
def test_batches_are_of_one_generation_bounded_and_in_order(
    requests: list[tuple[int, int]], max_rows: int, delay: float
) -> None:
    """The oldest request is always served first, alone if it is larger than a batch."""
    waiting = [
        Waiting(SLOTS[which].acquire(), rows(n), float(i), Future()) for i, (which, n) in enumerate(requests)
    ]
    batch, left = choose_batch(waiting, now=100.0, max_rows=max_rows, max_delay=delay)
    assert left == 0.0
    assert batch[0] is waiting[0]
    assert {w.lease.key for w in batch} == {waiting[0].lease.key}
    assert len(batch) == 1 or sum(w.rows for w in batch) <= max_rows
    same = [w for w in waiting if w.lease.key == waiting[0].lease.key]
    assert batch == same[: len(batch)]
    for w in waiting:
        w.lease.release()


def test_the_oldest_request_waits_no_longer_than_the_delay() -> None:
    """Until then a batch that is not full waits; a full one does not."""
    slot = SLOTS[0]
    waiting = [Waiting(slot.acquire(), rows(2), 10.0, Future())]
    batch, left = choose_batch(waiting, now=10.5, max_rows=4, max_delay=2.0)
    assert (list(batch), left) == ([], 1.5)
    assert choose_batch(waiting, now=12.0, max_rows=4, max_delay=2.0) == (waiting, 0.0)
    waiting.append(Waiting(slot.acquire(), rows(2), 10.1, Future()))
    assert choose_batch(waiting, now=10.5, max_rows=4, max_delay=2.0) == (waiting, 0.0)
    for w in waiting:
        w.lease.release()


def test_rows_come_back_to_their_requests() -> None:
    """Requests computed together, of several rows and above the batch size, get their own answers."""
    servable = HeldServable(3)
    slot = slot_with(servable)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randint(0, 256, (n, 3, 4, 4), generator=generator).byte() for n in (1, 3, 9, 2, 1)]
    with running(max_batch_size=4, max_batch_delay_seconds=0) as batcher:
        first = batcher.submit(slot.acquire(), rows(1))
        assert servable.entered.wait(20)
        futures = [batcher.submit(slot.acquire(), x) for x in inputs]
        servable.go.set()
        first.result(20)
        for x, future in zip(inputs, futures, strict=True):
            alone = LinearServable(3).predict(x)
            answer = future.result(20)
            torch.testing.assert_close(answer.scores, alone.scores)
            assert torch.equal(answer.class_ids, alone.class_ids)
            torch.testing.assert_close(answer.unknown, alone.unknown)
    assert servable.batches == [1, 4, 4, 4, 1, 3]


def test_a_failing_generation_fails_only_its_own_requests() -> None:
    """The thread and the other streams go on; every lease is given back."""
    bad, good = slot_with(FailingServable(1), "bad"), slot_with(LinearServable(2), "good")
    with running() as batcher:
        failed = batcher.submit(bad.acquire(), rows(2))
        answered = batcher.submit(good.acquire(), rows(1))
        with pytest.raises(RuntimeError, match="device lost"):
            failed.result(20)
        assert answered.result(20).class_ids.shape == (1,)
        assert batcher.alive
    for slot in (bad, good):
        assert slot.publish(LinearServable(8), 2).retired == ()
        slot.publish(LinearServable(9), 3)
        assert slot.drain(0.0)


def test_a_full_queue_refuses_and_gives_the_lease_back() -> None:
    """Beyond max_queue inputs a request is refused at once, and nothing of it is kept."""
    servable = HeldServable(1)
    slot = slot_with(servable)
    with running(max_queue=3) as batcher:
        first = batcher.submit(slot.acquire(), rows(1))
        assert servable.entered.wait(20)
        waiting = batcher.submit(slot.acquire(), rows(2))
        lease = slot.acquire()
        with pytest.raises(Overloaded, match=r"2 inputs are waiting .*max_queue is 3"):
            batcher.submit(lease, rows(2))
        with pytest.raises(AssertionError, match="after its release"):
            _ = lease.servable
        servable.go.set()
        assert len(first.result(20).class_ids) + len(waiting.result(20).class_ids) == 3


def test_late_and_cancelled_requests_are_not_computed() -> None:
    """A request that waited too long gets RequestTimeout; a cancelled one costs no computation."""
    servable = HeldServable(1)
    slot = slot_with(servable)
    with running(request_timeout_seconds=0.05, max_batch_delay_seconds=0) as batcher:
        first = batcher.submit(slot.acquire(), rows(1))
        assert servable.entered.wait(20)
        late = batcher.submit(slot.acquire(), rows(1))
        cancelled = batcher.submit(slot.acquire(), rows(1))
        assert cancelled.cancel()
        with pytest.raises(TimeoutError):
            late.result(0.1)  # longer than the request may wait
        servable.go.set()
        first.result(20)
        with pytest.raises(RequestTimeout, match=r"request_timeout_seconds is 0\.05"):
            late.result(20)
        assert batcher.drain(20)
    assert servable.batches == [1]


def test_stop_fails_what_still_waits_and_refuses_the_rest() -> None:
    """No request is left without an answer."""
    servable = HeldServable(1)
    slot = slot_with(servable)
    with running() as batcher:
        first = batcher.submit(slot.acquire(), rows(1))
        assert servable.entered.wait(20)
        waiting = batcher.submit(slot.acquire(), rows(1))
        assert not batcher.drain(0.0)
        batcher.stop()
        with pytest.raises(Overloaded, match="stopping"):
            batcher.submit(slot.acquire(), rows(1))
        servable.go.set()
        assert isinstance(first.result(20), Prediction)
        with pytest.raises(Overloaded, match="stopped before"):
            waiting.result(20)


def test_the_answer_is_set_after_the_lease_is_released() -> None:
    """Whoever holds the answer may free the generation."""
    slot = LiveSlot("s", 1, METRICS)
    slot.publish(LinearServable(1), 1)
    with running() as batcher:
        batcher.submit(slot.acquire(), rows(1)).result(20)
        slot.publish(LinearServable(2), 2)
        assert slot.drain(0.0)
