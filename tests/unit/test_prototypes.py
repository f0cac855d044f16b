"""Class means, standardisation and calibration, by numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cl_engine import calibration
from cl_engine.heads import PrototypeStatistics, Standardiser
from cl_engine.heads.prototypes import cosine_scores


def test_a_prototype_is_the_direction_of_the_mean_direction() -> None:
    """(3, 0) and (0, 4) have unit lengths (1, 0) and (0, 1): the prototype is at 45 degrees."""
    state = PrototypeStatistics.empty(2).updated(
        torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, -2.0]]), torch.tensor([0, 0, 1]), 2
    )
    assert state.count.tolist() == [2, 1]
    half = math.sqrt(0.5)
    torch.testing.assert_close(state.prototypes(), torch.tensor([[half, half], [0.0, -1.0]]))


def test_prototypes_grow_in_any_order() -> None:
    """Two sessions in either order give one session's sums, and a new class leaves the others alone."""
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    columns = torch.tensor([0, 1] * 6)
    empty = PrototypeStatistics.empty(4)
    at_once = empty.updated(features, columns, 2)
    parts = [slice(6, 12), slice(0, 6)]
    turned = empty
    for part in parts:
        turned = turned.updated(features[part], columns[part], 2)
    torch.testing.assert_close(turned.total, at_once.total, atol=1e-12, rtol=0)
    grown = at_once.updated(features, torch.full((12,), 2), 3)
    assert torch.equal(grown.prototypes()[:2], at_once.prototypes())
    with pytest.raises(ValueError, match="shrank from 3 to 2"):
        grown.updated(features, columns, 2)


def test_cosines_ignore_the_length() -> None:
    """Ten times the features, the same score."""
    prototypes = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert cosine_scores(torch.tensor([[10.0, 0.0]]), prototypes)[0].tolist() == pytest.approx([1.0, 0.6])


def test_a_standardiser_centres_and_scales() -> None:
    """Mean 2 and population spread 1 of (1, 3); a constant dimension is only centred."""
    standard = Standardiser.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert standard(torch.tensor([[4.0, 6.0]])).tolist() == [[2.0, 1.0]]
    assert Standardiser.fit(torch.tensor([[7.0, 8.0]]))(torch.tensor([[7.0, 9.0]])).tolist() == [[0.0, 1.0]]


def test_certain_scores_are_sharpened_and_wrong_ones_flattened() -> None:
    """Right in 300 of 400 with a gap of 1: smoothed (300 + 1) / (400 + 2), so exp(s) = 2.98, nearest 1."""
    right = torch.tensor([[0.02, 0.0], [0.0, 0.02]])
    assert calibration.fit_sharpness(right, torch.tensor([0, 1])) > 50
    assert calibration.fit_sharpness(right, torch.tensor([1, 0])) == min(calibration.SHARPNESSES)
    same = torch.tensor([[1.0, 0.0]] * 400)
    truth = torch.tensor([0, 0, 0, 1] * 100)
    assert calibration.fit_sharpness(same, truth) == 1.0
    assert calibration.fit_sharpness(same / 4, truth) == 4.0


def test_a_small_holdout_without_a_mistake_asks_for_modest_confidence() -> None:
    """Two right with a gap of 1: smoothed to 3 of 4, so exp(s) = 3, nearest 1; 1,000 right allow more."""
    right = torch.eye(2)
    assert calibration.fit_sharpness(right, torch.tensor([0, 1])) == 1.0
    assert calibration.fit_sharpness(right.repeat(500, 1), torch.tensor([0, 1] * 500)) == 8.0


@pytest.mark.parametrize("shape", [(0, 3), (5, 1)])
def test_nothing_to_calibrate_on_gives_the_default(shape: tuple[int, int]) -> None:
    """No holdout sample, or a single class."""
    columns = torch.zeros(shape[0], dtype=torch.int64)
    assert calibration.fit_sharpness(torch.zeros(shape), columns) == calibration.DEFAULT_SHARPNESS


def test_the_unknown_score_is_the_share_of_nearer_holdout_samples() -> None:
    """Among distances .1 .2 .3 .4: .25 is farther than two, .05 than none, .9 than all, .2 than one."""
    table = calibration.merge_distances(torch.tensor([0.3, 0.1]), torch.tensor([0.4, 0.2]))
    assert table.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    distances = torch.tensor([0.25, 0.05, 0.9, 0.2])
    assert calibration.unknown_score(distances, table).tolist() == [0.5, 0.0, 1.0, 0.25]
    assert calibration.unknown_score(distances, torch.zeros(0)).tolist() == [0.0] * 4


def test_the_table_of_distances_is_thinned_evenly() -> None:
    """It keeps its ends, its order and its median."""
    table = calibration.merge_distances(torch.arange(4000.0), torch.arange(4000.0, 5001.0))
    assert len(table) == calibration.MAX_DISTANCES
    assert (table[0], table[-1]) == (0, 5000)
    assert torch.equal(table, table.sort().values)
    assert float(table.median()) == pytest.approx(2500, abs=5)
