"""The metrics over the accuracy matrix, against arithmetic worked by hand."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from cl_engine.evaluation import (
    accuracy_curve,
    accuracy_matrix_row,
    average_accuracy,
    backward_transfer,
    class_accuracies,
    forgetting,
    forward_transfer,
    holdout_counts,
    last_accuracy,
    learning_transfer,
)

# Session 0 peaks after session 1 (0.9) and ends at 0.5; session 1 goes from 0.6 to 0.7.
WORKED = [[0.8], [0.9, 0.6], [0.5, 0.7, 1.0]]


@st.composite
def matrices(draw: st.DrawFn) -> list[list[float]]:
    """Draw a lower-triangular matrix of accuracies."""
    sessions = draw(st.integers(1, 6))
    unit = st.floats(0, 1)
    return [draw(st.lists(unit, min_size=t + 1, max_size=t + 1)) for t in range(sessions)]


def test_curve_last_and_average_of_the_worked_matrix() -> None:
    """A = 0.8, 1.5 / 2 and 2.2 / 3; A_bar is the mean of the three."""
    assert accuracy_curve(WORKED) == pytest.approx([0.8, 0.75, 2.2 / 3])
    assert last_accuracy(WORKED) == pytest.approx(2.2 / 3)
    assert average_accuracy(WORKED) == pytest.approx((0.8 + 0.75 + 2.2 / 3) / 3)


def test_holdout_counts_as_weights_make_it_the_accuracy_over_samples() -> None:
    """With 10, 30 and 60 samples: (5 + 21 + 60) / 100."""
    assert last_accuracy(WORKED, weights=[10, 30, 60]) == pytest.approx(0.86)


def test_forgetting_takes_the_best_earlier_row() -> None:
    """Session 0 fell 0.9 - 0.5, session 1 fell 0.6 - 0.7; the last session does not count."""
    assert forgetting(WORKED) == pytest.approx((0.4 - 0.1) / 2)


def test_backward_transfer_compares_with_the_diagonal() -> None:
    """Session 0 changed 0.5 - 0.8, session 1 changed 0.7 - 0.6."""
    assert backward_transfer(WORKED) == pytest.approx((-0.3 + 0.1) / 2)


def test_learning_transfer_by_hand() -> None:
    """Sessions 2 and 3 gain 0.1 and lose 0.3 against learning them alone; the first has no part in it."""
    assert learning_transfer([0.2, 0.9, 0.5], [0.9, 0.8, 0.8]) == pytest.approx(-0.1)
    assert learning_transfer([0.7], [0.1]) == 0.0
    assert learning_transfer([0.7, None, 0.6], [0.7, 0.5, 0.4]) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="differ in length"):
        learning_transfer([0.7, 0.8], [0.7])


def test_forward_transfer_ignores_the_first_session() -> None:
    """(0.3 - 0.1) and (0.5 - 0.2), whatever stands at index 0."""
    assert forward_transfer([0.99, 0.3, 0.5], [0.0, 0.1, 0.2]) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="differ in length"):
        forward_transfer([0.1], [0.1, 0.2])


def test_unmeasured_sessions_are_left_out_of_every_mean() -> None:
    """Session 0 has no holdout sample at all: only sessions 1 and 2 count."""
    matrix = [[0.8], [None, 0.6], [None, 0.4, 1.0]]
    assert last_accuracy(matrix) == pytest.approx(0.7)
    assert forgetting(matrix) == pytest.approx(0.2)
    assert backward_transfer(matrix) == pytest.approx(-0.2)
    assert forward_transfer([None, None, 0.5], [0.0, 0.0, 0.2]) == pytest.approx(0.3)


def test_a_row_with_nothing_measured_is_refused() -> None:
    """A mean over nothing is an error, not a zero that looks like a result."""
    with pytest.raises(ValueError, match="row 1 has no measured session"):
        last_accuracy([[0.5], [None, None]])


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([], "empty"),
        ([[0.5], [0.5]], "row 1 has 1 entries"),
        ([[1.5]], r"matrix\[0\]\[0\] is 1.5"),
        ([[float("nan")]], "between 0 and 1"),
    ],
)
def test_a_malformed_matrix_is_refused(matrix: list[list[float]], message: str) -> None:
    """The error names the place and what belongs there."""
    for metric in (last_accuracy, average_accuracy, forgetting, backward_transfer):
        with pytest.raises(ValueError, match=message):
            metric(matrix)


def test_weights_that_do_not_fit_are_refused() -> None:
    """One weight per session, none negative."""
    with pytest.raises(ValueError, match="weights must be 3"):
        last_accuracy(WORKED, weights=[1, 1])
    with pytest.raises(ValueError, match="weights must be 3"):
        last_accuracy(WORKED, weights=[1, -1, 1])


def test_a_row_is_measured_per_session() -> None:
    """Classes 0 and 7 came in session 0, class 3 in session 2, session 1 has no sample."""
    true = torch.tensor([0, 0, 7, 7, 3])
    predicted = torch.tensor([0, 7, 7, 7, 0])
    sessions = {0: 0, 7: 0, 5: 1, 3: 2}
    assert accuracy_matrix_row(predicted, true, sessions) == [0.75, None, 0.0]
    assert holdout_counts(true, sessions) == [4, 0, 1]
    assert class_accuracies(predicted, true) == {0: 0.5, 3: 0.0, 7: 1.0}
    json.dumps(accuracy_matrix_row(predicted, true, sessions), allow_nan=False)


def test_a_class_of_no_session_is_refused() -> None:
    """The error names the class."""
    with pytest.raises(ValueError, match="class 9"):
        accuracy_matrix_row(torch.tensor([9]), torch.tensor([9]), {0: 0})
    with pytest.raises(ValueError, match="one vector"):
        class_accuracies(torch.tensor([1, 2]), torch.tensor([1]))


@given(matrices())
def test_metrics_keep_their_bounds_and_their_inputs(matrix: list[list[float]]) -> None:
    """Means stay between the extremes, F and BWT within [-1, 1], F >= -BWT, and nothing is mutated."""
    before = copy.deepcopy(matrix)
    values = [value for row in matrix for value in row]
    for metric in (last_accuracy, average_accuracy):
        assert min(values) - 1e-12 <= metric(matrix) <= max(values) + 1e-12
    assert -1 <= backward_transfer(matrix) <= 1
    assert -1 <= forgetting(matrix) <= 1
    # The best earlier row is at least the diagonal.
    assert forgetting(matrix) >= -backward_transfer(matrix) - 1e-12
    assert matrix == before


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_accuracies_that_never_change_are_never_forgotten(finals: list[float]) -> None:
    """Zero forgetting and zero backward transfer when each column is constant."""
    matrix = [finals[: t + 1] for t in range(len(finals))]
    assert forgetting(matrix) == 0
    assert backward_transfer(matrix) == 0


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40),
)
def test_the_sample_weighted_last_accuracy_is_the_plain_accuracy(pairs: list[tuple[int, int]]) -> None:
    """Weighting a row by its holdout counts gives the share of right answers."""
    predicted, true = (torch.tensor(column) for column in zip(*pairs, strict=True))
    sessions = {c: c // 2 for c in range(6)}
    row = accuracy_matrix_row(predicted, true, sessions)
    weights = holdout_counts(true, sessions)
    matrix = [[1.0], [1.0, 1.0], row]
    expected = (predicted == true).double().mean().item()
    assume(weights[0] > 0)
    assert last_accuracy(matrix, weights) == pytest.approx(expected)
