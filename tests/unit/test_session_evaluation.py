"""Measuring a generation on the holdout: a matrix worked by hand, a servable told its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cl_engine.generation.content import ClassEntry, Generation
from cl_engine.learners import Prediction
from cl_engine.samples import TensorSamples
from daemon.sessions.evaluate import BATCH, evaluate, without_last_session

GENERATION = Generation(
    method="ncm",
    backbone="none",
    session=1,
    settings={},
    classes=(ClassEntry(0, "a", 0), ClassEntry(4, "b", 0), ClassEntry(7, "c", 1)),
    tensors={},
    evaluation={"strategy": "kept"},
)
PARENT = {"accuracy_matrix": [[1.0]], "a_t_curve": [1.0]}


class ToldServable:
    """Answers with the class id that each input row holds."""

    digest = "told"
    class_ids = (0, 4, 7)
    labels: Mapping[int, str] = {0: "a", 4: "b", 7: "c"}

    def predict(self, inputs: Tensor) -> Prediction:
        """Read the answers (B,) from the rows (B, 1)."""
        ids = inputs[:, 0].to(torch.int64)
        return Prediction(torch.ones(len(ids), 3) / 3, ids, torch.zeros(len(ids)))

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Nothing is decoded here."""
        raise NotImplementedError

    def nbytes(self) -> int:
        """Hold nothing."""
        return 0


def holdout(true: list[int], answers: list[int]) -> TensorSamples:
    """Build samples whose answer is known."""
    return TensorSamples(torch.tensor(answers).unsqueeze(1), torch.tensor(true, dtype=torch.int64))


def test_without_a_class_the_last_row_is_measured_anew() -> None:
    """Session 0 is measured on the class it has left; the rows before stay as they were."""
    before = {"accuracy_matrix": [[1.0], [0.75, 0.5]], "a_t_curve": [1.0, 4 / 6], "forgetting": 0.25}
    left = replace(GENERATION, classes=(ClassEntry(0, "a", 0), ClassEntry(7, "c", 1)), evaluation={})
    samples = holdout([0, 0, 7, 7], [0, 0, 7, 0])
    found = evaluate(left, ToldServable(), samples, without_last_session(before))
    assert found["accuracy_matrix"] == [[1.0], [1.0, 0.5]]
    assert found["a_t_curve"] == [1.0, 0.75]
    assert found["forgetting"] == 0.0
    alone = replace(GENERATION, session=0, classes=(ClassEntry(0, "a", 0),), evaluation={})
    first = without_last_session({"accuracy_matrix": [[1.0]], "a_t_curve": [1.0]})
    assert evaluate(alone, ToldServable(), holdout([0], [0]), first)["accuracy_matrix"] == [[1.0]]


def test_matrix_and_figures_by_hand() -> None:
    """Session 0: 3 of 4 right, session 1: 1 of 2; A_T over samples 4/6, forgetting 1 - 3/4."""
    found = evaluate(GENERATION, ToldServable(), holdout([0, 0, 4, 4, 7, 7], [0, 0, 4, 7, 7, 0]), PARENT)
    assert found["accuracy_matrix"] == [[1.0], [0.75, 0.5]]
    assert found["a_t"] == pytest.approx(4 / 6)
    assert found["a_t_curve"] == [1.0, pytest.approx(4 / 6)]
    assert found["a_bar"] == pytest.approx((1 + 4 / 6) / 2)
    assert found["forgetting"] == pytest.approx(0.25)
    assert found["backward_transfer"] == pytest.approx(-0.25)
    assert found["class_accuracy"] == {"0": 1.0, "4": 0.5, "7": 0.5}
    assert found["holdout_samples"] == 6
    assert found["strategy"] == "kept"


def test_a_session_without_holdout_is_left_out() -> None:
    """A class that nothing was held out of gives None, not an accuracy of nought."""
    found = evaluate(GENERATION, ToldServable(), holdout([0, 4], [0, 0]), PARENT)
    assert found["accuracy_matrix"] == [[1.0], [0.5, None]]
    assert found["a_t"] == 0.5
    assert "7" not in found["class_accuracy"]


def test_no_holdout_at_all_is_not_measured() -> None:
    """The first session of very few samples has no figure, and says so with None."""
    first = replace(GENERATION, session=0, classes=(ClassEntry(0, "a", 0),))
    empty = TensorSamples(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    found = evaluate(first, ToldServable(), empty, None)
    assert found["accuracy_matrix"] == [[None]]
    assert (found["a_t"], found["a_bar"], found["a_t_curve"]) == (None, None, [None])


def test_a_refreshing_session_adds_an_empty_column() -> None:
    """A session without new classes keeps the matrix triangular, and forgetting is still counted."""
    refreshed = replace(GENERATION, session=2)
    parent = {"accuracy_matrix": [[1.0], [1.0, 1.0]], "a_t_curve": [1.0, 1.0]}
    found = evaluate(refreshed, ToldServable(), holdout([0, 4, 7, 7], [0, 0, 7, 7]), parent)
    assert found["accuracy_matrix"] == [[1.0], [1.0, 1.0], [0.5, 1.0, None]]
    assert found["forgetting"] == pytest.approx(0.25)


def test_progress_reaches_the_end_over_several_batches() -> None:
    """The share is reported after every batch, ascending to 1."""
    shares: list[float] = []
    count = 2 * BATCH + 1
    first = replace(GENERATION, session=0, classes=(ClassEntry(0, "a", 0),))
    evaluate(first, ToldServable(), holdout([0] * count, [0] * count), None, shares.append)
    assert shares == [pytest.approx(BATCH / count), pytest.approx(2 * BATCH / count), 1.0]
