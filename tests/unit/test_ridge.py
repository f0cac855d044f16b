"""The analytic ridge head, against the definitions computed the long way."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cl_engine.heads import RidgeStatistics, fit_ridge, leave_one_out
from cl_engine.heads.gaussian_error import gaussian_error
from cl_engine.heads.ridge import STRENGTHS, TOLERATED, fold_of, ridge_scores, with_intercept

CLASSES, DIMENSIONS = 3, 5


def drawn(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw features, class columns and folds."""
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, DIMENSIONS, generator=random),
        torch.randint(0, CLASSES, (count,), generator=random),
        torch.randint(0, 2, (count,), generator=random),
    )


def gathered(features: Tensor, columns: Tensor, folds: Tensor) -> RidgeStatistics:
    """Gather statistics in one go."""
    return RidgeStatistics.empty(DIMENSIONS).updated(features, columns, folds, CLASSES)


def one_hot(columns: Tensor) -> Tensor:
    """Return targets (N, C)."""
    return torch.nn.functional.one_hot(columns, CLASSES).double()


def wrong_of(weights: Tensor, state: RidgeStatistics, fold: int) -> float:
    """Count how many of a fold's samples a head is expected to get wrong."""
    means = weights.T @ state.cross[fold] / state.count[fold].clamp(min=1)
    return gaussian_error(means, weights.T @ state.gram[fold] @ weights, state.count[fold])


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(12)), st.lists(st.integers(0, 12), max_size=4))
def test_neither_order_nor_sessions_matter(order: list[int], cuts: list[int]) -> None:
    """Samples in any order, cut into any sessions, give the same sums up to rounding."""
    features, columns, folds = drawn(12)
    at_once = gathered(features, columns, folds)
    state = RidgeStatistics.empty(DIMENSIONS)
    edges = [0, *sorted(cuts), 12]
    for start, stop in pairwise(edges):
        rows = torch.tensor(order[start:stop], dtype=torch.int64)
        state = state.updated(features[rows], columns[rows], folds[rows], CLASSES)
    torch.testing.assert_close(state.gram, at_once.gram, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(state.cross, at_once.cross, atol=1e-12, rtol=1e-12)
    assert torch.equal(state.count, at_once.count)


def test_what_is_taken_out_was_never_seen() -> None:
    """Statistics, weights and error are those of the remaining samples alone."""
    features, columns, folds = drawn(40)
    kept, gone = slice(0, 30), slice(30, 40)
    state = gathered(features, columns, folds).updated(
        features[gone], columns[gone], folds[gone], CLASSES, sign=-1
    )
    never = gathered(features[kept], columns[kept], folds[kept])
    assert torch.equal(state.count, never.count)
    torch.testing.assert_close(state.gram, never.gram, atol=1e-6, rtol=0)
    torch.testing.assert_close(state.solve(1.0), never.solve(1.0), atol=1e-6, rtol=0)
    assert state.cross_validation(1.0) == pytest.approx(never.cross_validation(1.0), abs=1e-6)


def test_new_classes_get_columns_of_their_own() -> None:
    """Growing the class table leaves the earlier columns' sums alone."""
    features, columns, folds = drawn(10)
    before = gathered(features, columns, folds)
    after = before.updated(features, torch.full((10,), CLASSES), folds, CLASSES + 1)
    assert torch.equal(after.cross[:, :, :CLASSES], before.cross)
    assert after.count[:, CLASSES].sum() == 10
    with pytest.raises(ValueError, match="shrank from 4 to 3"):
        after.updated(features, columns, folds, CLASSES)


@pytest.mark.parametrize("fold", [None, 0, 1])
@pytest.mark.parametrize("strength", [0.01, 1.0, 1000.0])
def test_the_weights_are_those_of_least_squares(fold: int | None, strength: float) -> None:
    """A ridge is a least-squares problem with sqrt(strength) times the identity below the features."""
    features, columns, folds = drawn(20)
    rows = slice(None) if fold is None else folds == fold
    design = with_intercept(features.double())[rows].numpy()
    size = design.shape[1]
    stacked = np.vstack([design, math.sqrt(strength) * np.eye(size)])
    targets = np.vstack([one_hot(columns)[rows].numpy(), np.zeros((size, CLASSES))])
    expected = np.linalg.lstsq(stacked, targets, rcond=None)[0]
    found = gathered(features, columns, folds).solve(strength, fold)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_solving_changes_no_statistics() -> None:
    """The penalty is added to a copy."""
    state = gathered(*drawn(20))
    before = state.gram.clone()
    state.solve(10.0, 0)
    state.solve(10.0)
    assert torch.equal(state.gram, before)


@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_the_squared_error_needs_no_sample(strength: float) -> None:
    """It equals predicting each fold with the other fold's weights, sample by sample."""
    features, columns, folds = drawn(30)
    state = gathered(features, columns, folds)
    error = 0.0
    for fold in (0, 1):
        rows = folds == fold
        predicted = ridge_scores(features[rows].double(), state.solve(strength, 1 - fold))
        error += float((predicted - one_hot(columns)[rows]).square().sum())
    assert state.cross_validation(strength).squared == pytest.approx(error / 30, rel=1e-9)


@pytest.mark.parametrize("distance", [0.5, 2.0, 4.0])
def test_the_classification_error_is_that_of_normal_classes(distance: float) -> None:
    """Two unit normal classes at a distance d, told apart half-way: Phi(-d / 2) of them are wrong."""
    random = torch.Generator().manual_seed(1)
    columns = torch.arange(2_000) % 2
    features = torch.randn(2_000, 1, generator=random).double() + distance * columns[:, None]
    folds = torch.zeros_like(columns)
    state = RidgeStatistics.empty(1).updated(features, columns, folds, 2)
    half_way = torch.tensor([[-1.0, 1.0], [distance / 2, -distance / 2]], dtype=torch.float64)
    wrong = wrong_of(half_way, state, 0)
    expected = NormalDist().cdf(-distance / 2)
    # 20,000 draws and 2,000 samples: 4 standard errors.
    assert wrong / 2_000 == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 2_000))


def test_the_classification_error_foretells_new_samples() -> None:
    """On new samples of normal classes, the head is wrong as often as its sums say."""
    random = torch.Generator().manual_seed(2)
    means = torch.randn(CLASSES, DIMENSIONS, generator=random)

    def samples(count: int) -> tuple[Tensor, Tensor]:
        columns = torch.arange(count) % CLASSES
        return means[columns] + torch.randn(count, DIMENSIONS, generator=random), columns

    features, columns = samples(3_000)
    state = gathered(features, columns, torch.arange(3_000) // 1_500)
    new, truth = samples(9_000)
    wrong = (ridge_scores(new.double(), state.solve(10.0)).argmax(dim=1) != truth).double().mean()
    assert state.cross_validation(10.0).classification == pytest.approx(float(wrong), abs=0.02)


def test_a_class_without_samples_in_a_fold_is_not_judged() -> None:
    """A class with samples in the other fold only is not judged, and a single class is never wrong."""
    features, columns, folds = drawn(30)
    folds[columns == 2] = 0
    state = gathered(features, columns, folds)
    judged = wrong_of(state.solve(1.0, 0), state, 1)
    assert judged <= int((folds == 1).sum())
    columns, folds = torch.zeros(30, dtype=torch.int64), torch.arange(30) % 2
    alone = RidgeStatistics.empty(DIMENSIONS).updated(features, columns, folds, 1)
    assert alone.cross_validation(1.0).classification == 0


@given(st.integers(0, 40), st.integers(8, 60))
@settings(max_examples=25, deadline=None)
def test_the_chosen_strength_is_a_minimum(seed: int, count: int) -> None:
    """No neighbour has less error than tolerated."""
    state = gathered(*drawn(count, seed))
    at = STRENGTHS.index(state.choose_strength())
    errors = [state.cross_validation(s).classification for s in STRENGTHS[max(at - 1, 0) : at + 3]]
    chosen = errors[1] if at else errors[0]
    assert chosen <= (1 + TOLERATED) * min(errors)


def test_where_samples_pass_the_features_the_strength_is_not_the_least() -> None:
    """As many samples in a fold as features: the unpenalised fit is at its worst and not chosen."""
    random = torch.Generator().manual_seed(0)
    classes, dimensions = 10, 40
    columns = torch.arange(8 * classes) % classes
    means = torch.randn(classes, dimensions, generator=random)
    features = means[columns] + torch.randn(len(columns), dimensions, generator=random)
    folds = torch.arange(len(columns)) // classes % 2
    state = RidgeStatistics.empty(dimensions).updated(features, columns, folds, classes)
    errors = {s: state.cross_validation(s).classification for s in STRENGTHS}
    assert errors[STRENGTHS[0]] > 0.3
    assert errors[state.choose_strength()] <= (1 + TOLERATED) * min(errors.values())


def test_noise_is_penalised_and_signal_is_not() -> None:
    """Targets that do not depend on the features want the strongest penalty in reach, clear ones little."""
    features, columns, folds = drawn(200)
    noise = gathered(features, columns, folds).choose_strength()
    clear = gathered(features + 20 * one_hot(columns) @ torch.eye(3, 5).double(), columns, folds)
    assert clear.choose_strength() < noise


def test_a_fold_is_for_ever() -> None:
    """Worked out once with crc32; a change would mix samples between the folds of stored statistics."""
    assert fold_of(["a", "c", "stream/0/17", "stream/0/18", "ü"]).tolist() == [1, 1, 1, 0, 1]
    ids = [str(i) for i in range(2000)]
    assert fold_of(ids).double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(fold_of(ids[::-1]).flip(0), fold_of(ids))


@pytest.mark.parametrize("count", [4, 6, 20])
def test_the_kernel_and_the_gram_matrix_agree(count: int) -> None:
    """Fewer samples than dimensions, as many, and more give the ridge solution."""
    features, columns, _ = drawn(count)
    rows, targets = with_intercept(features.double()), one_hot(columns)
    expected = torch.linalg.solve(rows.T @ rows + 0.5 * torch.eye(DIMENSIONS + 1), rows.T @ targets)
    torch.testing.assert_close(fit_ridge(features, targets, 0.5), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("count", [4, 15])
def test_leave_one_out_equals_leaving_each_out(count: int) -> None:
    """The strength with the least error over as many fits as there are samples."""
    features, columns, _ = drawn(count, seed=4)
    targets = one_hot(columns)
    targets -= targets.mean(dim=0)
    strengths = (0.01, 0.3, 3.0, 30.0, 1000.0)
    errors = []
    for strength in strengths:
        error = 0.0
        for i in range(count):
            others = torch.arange(count) != i
            weights = fit_ridge(features[others], targets[others], strength)
            predicted = ridge_scores(features[i : i + 1].double(), weights)
            error += float((predicted - targets[i]).square().sum())
        errors.append(error)
    assert leave_one_out(features, targets, strengths) == strengths[errors.index(min(errors))]
