"""Top-k, exclusive and overlapping masks, against arithmetic worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_engine.masks.density import erdos_renyi_densities, erdos_renyi_scale
from cl_engine.masks.exclusive import exclusive, union
from cl_engine.masks.overlap import coverage_matrix, intersection_counts, jaccard_matrix
from cl_engine.masks.topk import keep_largest, top_share


def bits(text: str) -> torch.Tensor:
    """Write a mask as a string of 0 and 1."""
    return torch.tensor([character == "1" for character in text])


def test_the_smallest_absolute_scores_are_dropped() -> None:
    """Of five, int(0.6 * 5) = 3 are dropped: |0.1|, |-0.2| and |0.3|."""
    scores = torch.tensor([0.1, -0.9, 0.3, -0.2, 0.5])
    assert torch.equal(top_share(scores, 0.4), bits("01001"))


@pytest.mark.parametrize(("density", "kept"), [(1.0, 7), (0.5, 4), (0.1, 1), (0.01, 1)])
def test_the_kept_count_rounds_up(density: float, kept: int) -> None:
    """The dropped count is rounded down, so at least one entry stays."""
    assert top_share(torch.arange(7.0).reshape(1, 7), density).sum() == kept


def test_equal_scores_keep_the_later_entries() -> None:
    """All the same: the last two of four, in row-major order."""
    assert torch.equal(top_share(torch.ones(2, 2), 0.5), torch.tensor([[False, False], [True, True]]))
    assert torch.equal(keep_largest(torch.tensor([2.0, 1.0, 1.0, 1.0]), 2), bits("1001"))


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_a_density_out_of_range_is_refused(density: float) -> None:
    """The error names the setting."""
    with pytest.raises(ValueError, match="density is"):
        top_share(torch.ones(3), density)


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=60),
    st.floats(0.01, 1),
)
def test_top_share_equals_dropping_in_a_stable_sort(values: list[int], density: float) -> None:
    """The definition itself: stable sort by |score|, drop the first int((1 - k) n)."""
    scores = torch.tensor(values, dtype=torch.float32)
    order = sorted(range(len(values)), key=lambda i: abs(values[i]))
    dropped = set(order[: int((1 - density) * len(values))])
    expected = torch.tensor([i not in dropped for i in range(len(values))])
    assert torch.equal(top_share(scores, density), expected)


def test_exclusive_is_the_mask_without_the_union() -> None:
    """1111 without 1000 and 1010 leaves 0101; without anything it stays."""
    assert torch.equal(exclusive(bits("1111"), [bits("1000"), bits("1010")]), bits("0101"))
    assert torch.equal(exclusive(bits("0110"), []), bits("0110"))
    assert torch.equal(union([bits("1000"), bits("0010")], like=bits("0000")), bits("1010"))


def test_masks_of_another_shape_or_type_are_refused() -> None:
    """Broadcasting would quietly give a wrong answer."""
    with pytest.raises(ValueError, match="shape"):
        exclusive(bits("1111"), [bits("1")])
    with pytest.raises(ValueError, match="boolean"):
        exclusive(torch.ones(4), [])
    with pytest.raises(ValueError, match="boolean"):
        jaccard_matrix([bits("11"), torch.ones(2)])


@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=5))
def test_exclusive_parts_of_a_sequence_are_disjoint_and_cover_the_union(rows: list[list[bool]]) -> None:
    """Each entry belongs to exactly the first mask that takes it."""
    masks = [torch.tensor(row) for row in rows]
    parts = [exclusive(mask, masks[:t]) for t, mask in enumerate(masks)]
    assert torch.equal(torch.stack(parts).sum(0), union(masks, like=masks[0]).long())


def test_overlap_of_worked_masks() -> None:
    """1100 and 0110 share one of three; 1100 lies half in 0110; the empty mask shares nothing."""
    masks = [bits("1100"), bits("0110"), bits("0000")]
    assert intersection_counts(masks).tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert torch.allclose(
        jaccard_matrix(masks),
        torch.tensor([[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]], dtype=torch.float64),
    )
    assert coverage_matrix(masks).tolist() == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0]]


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=5))
def test_jaccard_is_symmetric_and_within_bounds(rows: list[list[bool]]) -> None:
    """1 on the diagonal, between 0 and 1 elsewhere."""
    matrix = jaccard_matrix([torch.tensor(row) for row in rows])
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diagonal(), torch.ones(len(rows), dtype=torch.float64))
    assert (matrix >= 0).all()
    assert (matrix <= 1).all()


def test_erdos_renyi_densities_of_worked_shapes() -> None:
    """2 * (20 + 10) / (20 * 10 * 9) = 1 / 30; the small head, 2 * 7 / 10, is clamped."""
    shapes = {"conv": (20, 10, 3, 3), "head": (5, 2)}
    assert erdos_renyi_densities(shapes, scale=2) == pytest.approx({"conv": 1 / 30, "head": 0.5})
    assert erdos_renyi_densities(shapes, scale=2, clamp=1)["head"] == 1.0


@given(st.floats(0.005, 0.5), st.sampled_from([0.5, 0.8, 1.0]))
def test_the_scale_found_for_a_density_keeps_that_share(density: float, clamp: float) -> None:
    """Summed over the layers, clamped or not, the kept weights are the wanted share."""
    shapes = {"a": (64, 32, 3, 3), "b": (10, 20), "c": (2, 100), "d": (300, 784)}
    densities = erdos_renyi_densities(shapes, erdos_renyi_scale(shapes, density, clamp), clamp)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    kept = sum(densities[name] * sizes[name] for name in shapes)
    assert kept == pytest.approx(density * sum(sizes.values()))


def test_a_density_that_no_scale_reaches_is_refused() -> None:
    """With every layer clamped at 0.5, 60 % cannot be kept."""
    with pytest.raises(ValueError, match=r"density is 0.6: with clamp 0.5"):
        erdos_renyi_scale({"a": (4, 4)}, 0.6)
    with pytest.raises(ValueError, match="needs an output and an input"):
        erdos_renyi_densities({"bias": (4,)}, 1.0)
