"""Continual-learning metrics: pure functions over the accuracy matrix.

The accuracy matrix is a list of rows, one per session: `matrix[t][i]` is the accuracy (0 to 1) on the
holdout of session i's classes, measured after session t; row t holds sessions 0 to t, so the matrix is
lower-triangular. `None` marks a session whose classes have no holdout sample yet: it is left out of
every mean. With T sessions the last row is `matrix[T - 1]`, which papers write as a_T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Row = Sequence[float | None]
Matrix = Sequence[Row]


def accuracy_matrix_row(
    predicted: Tensor, true: Tensor, class_to_session: Mapping[int, int]
) -> list[float | None]:
    """Measure one row of the accuracy matrix: the accuracy on each session's classes.

    Args:
        predicted: predicted class ids, integer (N,).
        true: true class ids, integer (N,), each a key of `class_to_session`.
        class_to_session: the session that introduced each class.

    Returns:
        One accuracy per session, from 0 to the highest in `class_to_session`; None without samples.

    Raises:
        ValueError: the lengths differ, or a true class belongs to no session.
    """
    counts = holdout_counts(true, class_to_session)
    correct = holdout_counts(true[_hits(predicted, true)], class_to_session)
    return [right / samples if samples else None for right, samples in zip(correct, counts, strict=True)]


def holdout_counts(true: Tensor, class_to_session: Mapping[int, int]) -> list[int]:
    """Count the samples of each session's classes: the `weights` of a sample-weighted mean.

    Raises:
        ValueError: a true class belongs to no session.
    """
    if not class_to_session:
        raise ValueError("class_to_session is empty: pass the session of at least one class")
    counts = [0] * (max(class_to_session.values()) + 1)
    classes, samples = torch.unique(true, return_counts=True)
    for class_id, count in zip(classes.tolist(), samples.tolist(), strict=True):
        if class_id not in class_to_session:
            raise ValueError(f"true holds class {class_id}, which is missing from class_to_session: add it")
        counts[class_to_session[class_id]] += count
    return counts


def class_accuracies(predicted: Tensor, true: Tensor) -> dict[int, float]:
    """Measure the accuracy of each class that occurs in `true`, as class id to accuracy.

    Raises:
        ValueError: the lengths differ.
    """
    hits = _hits(predicted, true)
    return {int(c): hits[true == c].double().mean().item() for c in torch.unique(true)}


def accuracy_curve(matrix: Matrix, weights: Sequence[float] | None = None) -> list[float]:
    """Return A_t for every session: the mean accuracy over the sessions learnt so far.

    Args:
        matrix: the accuracy matrix.
        weights: one per session; holdout counts make A_t the accuracy over samples. Equal if None.

    Raises:
        ValueError: the matrix is not lower-triangular, an accuracy is outside 0 to 1, the weights do
            not fit, or a row has no measured session of positive weight.
    """
    _check(matrix)
    if weights is None:
        weights = [1.0] * len(matrix)
    if len(weights) != len(matrix) or any(weight < 0 for weight in weights):
        raise ValueError(f"weights must be {len(matrix)} numbers of 0 or more, is {list(weights)}")
    return [_weighted_mean(row, weights, t) for t, row in enumerate(matrix)]


def last_accuracy(matrix: Matrix, weights: Sequence[float] | None = None) -> float:
    """Return A_T, the mean accuracy over all sessions after the last one (see `accuracy_curve`)."""
    return accuracy_curve(matrix, weights)[-1]


def average_accuracy(matrix: Matrix, weights: Sequence[float] | None = None) -> float:
    """Return A_bar = (A_1 + ... + A_T) / T, the mean of `accuracy_curve`."""
    curve = accuracy_curve(matrix, weights)
    return sum(curve) / len(curve)


def forgetting(matrix: Matrix) -> float:
    """Return the forgetting of Chaudhry et al. (2018): how far earlier sessions fell from their best.

        F = 1 / (T - 1) * sum over i < T of ( max over t < T of a[t][i]  -  a[T][i] )

    Negative where later sessions helped; 0 for a single session. Sessions that were not measured, either
    before the last row or in it, are left out of the mean.
    """
    _check(matrix)
    falls = []
    for i, last in enumerate(matrix[-1][:-1]):
        earlier = [value for row in matrix[i:-1] if (value := row[i]) is not None]
        if last is not None and earlier:
            falls.append(max(earlier) - last)
    return _mean(falls)


def backward_transfer(matrix: Matrix) -> float:
    """Return BWT (Lopez-Paz and Ranzato, 2017): what later sessions did to earlier ones.

        BWT = 1 / (T - 1) * sum over i < T of ( a[T][i]  -  a[i][i] )

    Negative where later sessions hurt; 0 for a single session. Unmeasured sessions are left out.
    """
    _check(matrix)
    changes = [
        last - first
        for i, last in enumerate(matrix[-1][:-1])
        if last is not None and (first := matrix[i][i]) is not None
    ]
    return _mean(changes)


def forward_transfer(before: Row, baseline: Row) -> float:
    """Return FWT (Lopez-Paz and Ranzato, 2017): how well sessions are known before they are learnt.

        FWT = 1 / (T - 1) * sum over i > 1 of ( a[i - 1][i]  -  b[i] )

    The accuracy matrix has no entries above its diagonal, so they are passed in. Where the model can only
    answer with classes it has learnt, `before` is 0 throughout; it is informative with the task id given.

    Args:
        before: `before[i]` is the accuracy on session i's holdout after session i - 1, that is just
            before session i is learnt; `before[0]` is ignored, nothing was learnt before it.
        baseline: `baseline[i]` is the accuracy of an untrained model on session i's holdout.

    Raises:
        ValueError: the lengths differ.
    """
    if len(before) != len(baseline):
        raise ValueError(f"before ({len(before)}) and baseline ({len(baseline)}) differ in length")
    gains = [
        zero_shot - untrained
        for zero_shot, untrained in zip(before[1:], baseline[1:], strict=True)
        if zero_shot is not None and untrained is not None
    ]
    return _mean(gains)


def learning_transfer(learnt: Row, alone: Row) -> float:
    """Return FWT against independent learning: what earlier sessions do for learning a new one.

        FWT = 1 / (T - 1) * sum over i > 1 of ( a[i][i]  -  s[i] )

    Measured this way by Lin et al. (2022), among others; unlike `forward_transfer` it also says something
    of a model that can only answer with classes it has learnt. Positive where a session is learnt better
    after the others than from nothing; 0 for a single session. Unmeasured sessions are left out.

    Args:
        learnt: `learnt[i]` is the accuracy on session i's holdout right after it is learnt, its classes
            alone to choose from: otherwise later sessions would have more to choose from.
        alone: `alone[i]` is the same of a fresh learner that has learnt session i only.

    Raises:
        ValueError: the lengths differ.
    """
    return forward_transfer(learnt, alone)


def _hits(predicted: Tensor, true: Tensor) -> Tensor:
    if predicted.shape != true.shape or true.ndim != 1:
        raise ValueError(
            f"predicted {tuple(predicted.shape)} and true {tuple(true.shape)} must be one vector of ids each"
        )
    return predicted == true


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _weighted_mean(row: Row, weights: Sequence[float], session: int) -> float:
    pairs = [(a, w) for a, w in zip(row, weights[: len(row)], strict=True) if a is not None and w > 0]
    if not pairs:
        raise ValueError(f"matrix row {session} has no measured session of positive weight: add holdout")
    return sum(a * w for a, w in pairs) / sum(w for _, w in pairs)


def _check(matrix: Matrix) -> None:
    if not matrix:
        raise ValueError("matrix is empty: measure at least one session")
    for t, row in enumerate(matrix):
        if len(row) != t + 1:
            raise ValueError(f"matrix row {t} has {len(row)} entries: it must hold sessions 0 to {t}")
        for i, value in enumerate(row):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"matrix[{t}][{i}] is {value}: accuracies lie between 0 and 1")
