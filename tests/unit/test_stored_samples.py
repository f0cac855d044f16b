"""Stored samples as a learner sees them, and those that cannot be decoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cl_engine.errors import InputError
from daemon.errors import UnreadableSamples
from daemon.sessions.samples import StoredSamples
from daemon.sources.base import Place
from daemon.state import SqlState
from daemon.state.base import NewSample
from tests.support.manual_clock import ManualClock

STREAM = "s"


def decode(payload: bytes, content_type: str) -> Tensor:
    """Take the bytes as they are; some are damaged, and some hit a defect of the decoder."""
    if payload == b"bad":
        raise InputError("the image is damaged")
    if payload == b"odd":
        raise IndexError("index out of range")
    return torch.tensor(list(payload), dtype=torch.uint8)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SqlState]:
    """Open a state with four samples, two of which cannot be decoded."""
    state = SqlState.open(tmp_path, holdout_fraction={STREAM: 0.2}, clock=ManualClock())
    payloads = {"a": b"one", "b": b"bad", "c": b"two", "d": b"odd"}
    new = [
        NewSample(name, "cat", "image/png", payload, Place("t", 0), n, 0, 0.0)
        for n, (name, payload) in enumerate(payloads.items())
    ]
    state.store(STREAM, new, [], {Place("t", 0): 4})
    yield state
    state.close()


def test_readable_samples_are_decoded_in_the_order_asked_for(state: SqlState) -> None:
    """As rows of one tensor."""
    samples = StoredSamples(state, STREAM, ["a", "c"], decode)
    assert [bytes(row.tolist()) for row in samples.load([1, 0])] == [b"two", b"one"]


def test_one_that_cannot_be_decoded_names_them_all(state: SqlState) -> None:
    """So that the session starts again once, not once for each."""
    samples = StoredSamples(state, STREAM, ["a", "b", "c", "d"], decode)
    samples.load([0, 2])
    with pytest.raises(UnreadableSamples) as raised:
        samples.load([0, 1])
    assert raised.value.reasons == {"b": "the image is damaged", "d": "index out of range"}


def test_a_fault_that_no_sample_explains_is_not_blamed_on_one(state: SqlState) -> None:
    """Rows of different sizes cannot be stacked, though each can be decoded."""
    new = NewSample("e", "cat", "image/png", b"three", Place("t", 0), 4, 0, 0.0)
    state.store(STREAM, [new], [], {Place("t", 0): 5})
    with pytest.raises(RuntimeError, match="stack"):
        StoredSamples(state, STREAM, ["a", "e"], decode).load([0, 1])
