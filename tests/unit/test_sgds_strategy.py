"""Step 0 and the masks it leads to, by numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_engine.sgds.exploration import count_active, top_k_mask, z_scores
from cl_engine.sgds.strategy import (
    Choice,
    Strategy,
    keep_probabilities,
    semantic_strategy,
    session_to_borrow,
)

REUSE, ALLOCATE = Choice.REUSE, Choice.ALLOCATE


def directions(*degrees: float) -> torch.Tensor:
    """Return prototypes in the plane, not of unit length: only their direction may matter."""
    angles = torch.tensor([math.radians(d) for d in degrees])
    return 3 * torch.stack([angles.cos(), angles.sin()], dim=1)


@pytest.mark.parametrize("count_normalised", [False, True])
def test_the_relation_by_hand(count_normalised: bool) -> None:
    """One old class at 0 degrees, new ones at 0 and 90, temperature 1.

    The first new class has cosines 1 (old), 1 (itself), 0 (the other), so P = e, e, 1 over 2e + 1: the old
    class has more of it than the other new one. The second has cosines 0, 0, 1: both have 1 / (e + 2),
    and a tie is a reuse.
    """
    result = semantic_strategy(
        directions(0, 90), directions(0), temperature=1.0, count_normalised=count_normalised
    )
    e = math.e
    assert result.s_old.tolist() == pytest.approx([e / (2 * e + 1), 1 / (e + 2)])
    assert result.s_new.tolist() == pytest.approx([1 / (2 * e + 1), 1 / (e + 2)])
    assert result.choices == (REUSE, REUSE)
    assert result.old_relation.tolist() == [[1.0], [1.0]]


def test_the_old_relation_is_renormalised_over_old_classes() -> None:
    """Old classes at 0 and 90 degrees, the new one at 0: e and 1 over e + 1."""
    result = semantic_strategy(directions(0), directions(0, 90), temperature=1.0, count_normalised=True)
    assert result.old_relation[0].tolist() == pytest.approx([math.e / (math.e + 1), 1 / (math.e + 1)])


def test_the_temperature_sharpens() -> None:
    """At 0.1 the relation to a class at 90 degrees is exp(-10) of that to one at 0."""
    result = semantic_strategy(directions(0), directions(0, 90), temperature=0.1, count_normalised=True)
    assert result.old_relation[0, 1] / result.old_relation[0, 0] == pytest.approx(math.exp(-10), rel=1e-4)


def test_raw_sums_always_reuse_from_some_session_on() -> None:
    """With cosines from 0 to 1 no ratio passes e, so many old classes outweigh any kinship.

    Sessions of 4 classes: the new ones are alike (cosine 1) and unlike every old class (cosine 0), so each
    should have a subspace of its own. Raw sums give S_new = 3e and S_old = 4t: from t = 3 on (12 > 8.2)
    they say reuse. Means give e against 1 for ever.
    """
    for sessions in range(1, 12):
        new, old = directions(*[0] * 4), directions(*[90] * 4 * sessions)
        raw = semantic_strategy(new, old, temperature=1.0, count_normalised=False)
        means = semantic_strategy(new, old, temperature=1.0, count_normalised=True)
        assert raw.choices == ((REUSE if 4 * sessions > 3 * math.e else ALLOCATE),) * 4
        assert means.choices == (ALLOCATE,) * 4


def test_the_first_session_allocates() -> None:
    """There is nothing to reuse; a session of one class after it has nothing else."""
    first = semantic_strategy(
        directions(0, 5, 90), directions()[:0].reshape(0, 2), temperature=0.1, count_normalised=True
    )
    assert first.choices == (ALLOCATE,) * 3
    assert first.old_relation.shape == (3, 0)
    single = semantic_strategy(directions(90), directions(0), temperature=0.1, count_normalised=True)
    assert single.choices == (REUSE,)


def made_strategy(choices: tuple[Choice, ...], relation: list[list[float]]) -> Strategy:
    """Build a strategy whose compared sums do not matter."""
    zeros = torch.zeros(len(choices))
    return Strategy(choices, torch.tensor(relation), zeros, zeros)


def test_keep_probabilities_by_hand() -> None:
    """Two old classes with counters (4, 0, 2) and (0, 10, 0): shares (1, 0, .5) and (0, 1, 0).

    Related .8 and .2. Reuse: a = (.8, .2, .4), a / max a = (1, .25, .5), q = 1 - exp(-2 a / max a).
    Allocate: u = .2 (1, 0, .5) + .8 (0, 1, 0) = (.2, .8, .1), over its maximum (.25, 1, .125),
    q = exp(-5 u / max u).
    """
    counters = torch.tensor([[[4.0, 0.0, 2.0]], [[0.0, 10.0, 0.0]]])
    strategy = made_strategy((REUSE, ALLOCATE), [[0.8, 0.2], [0.8, 0.2]])
    q = keep_probabilities(strategy, counters, reuse_sharpness=2.0, allocate_sharpness=5.0, floor=0.0)
    assert q.shape == (2, 1, 3)
    assert q[0, 0].tolist() == pytest.approx([1 - math.exp(-2 * a) for a in (1, 0.25, 0.5)])
    assert q[1, 0].tolist() == pytest.approx([math.exp(-5 * u) for u in (0.25, 1, 0.125)])
    floored = keep_probabilities(strategy, counters, reuse_sharpness=2.0, allocate_sharpness=5.0, floor=0.3)
    assert torch.equal(floored, q.clamp(min=0.3))


def test_more_samples_do_not_weigh_more() -> None:
    """A class with ten times the samples has ten times the counters and the same say."""
    strategy = made_strategy((ALLOCATE,), [[0.5, 0.5]])
    counters = torch.tensor([[[4.0, 1.0, 2.0]], [[1.0, 3.0, 0.0]]])
    q = [
        keep_probabilities(
            strategy,
            counters * torch.tensor([factor, 1.0]).view(2, 1, 1),
            reuse_sharpness=3.0,
            allocate_sharpness=5.0,
            floor=0.05,
        )
        for factor in (1.0, 10.0)
    ]
    torch.testing.assert_close(q[0], q[1])


def test_without_old_classes_everything_is_kept() -> None:
    """The first session explores all activations."""
    strategy = made_strategy((ALLOCATE,) * 2, [[], []])
    q = keep_probabilities(
        strategy, torch.zeros(0, 3, 4), reuse_sharpness=3.0, allocate_sharpness=5.0, floor=0.0
    )
    assert torch.equal(q, torch.ones(2, 3, 4))


def test_unused_old_units_are_free_to_allocate_and_not_reused() -> None:
    """Counters that are all zero: reuse finds nothing (the floor), allocate avoids nothing."""
    strategy = made_strategy((REUSE, ALLOCATE), [[1.0], [1.0]])
    q = keep_probabilities(
        strategy, torch.zeros(1, 1, 3), reuse_sharpness=3.0, allocate_sharpness=5.0, floor=0.05
    )
    assert q[0, 0].tolist() == pytest.approx([0.05] * 3)
    assert q[1].tolist() == [[1.0] * 3]


def test_the_most_related_session_lends() -> None:
    """Old classes of subspaces 0, 1, 1 and none; the classes that reuse sum up, the others have no say."""
    owners = torch.tensor([0, 1, 1, -1])
    relation = [[0.1, 0.25, 0.25, 0.4], [0.9, 0.05, 0.05, 0.0]]
    assert session_to_borrow(made_strategy((REUSE, ALLOCATE), relation), owners, 2) == 1
    assert session_to_borrow(made_strategy((REUSE, REUSE), relation), owners, 2) == 0
    assert session_to_borrow(made_strategy((ALLOCATE, ALLOCATE), relation), owners, 2) is None


def test_counters_count_the_top_of_each_sample() -> None:
    """Two of four units a sample, among those its mask lets through, added to its class's row.

    Sample 0 (class 1): scores 4 3 2 1 with unit 0 masked: units 1 and 2. Sample 1 (class 0): 1 9 0 9:
    units 1 and 3. Sample 2 (class 1) passes unit 3 only, so only that one counts.
    """
    counters = torch.zeros(2, 4)
    counters[0, 0] = 5
    count_active(
        counters,
        torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 9.0, 0.0, 9.0], [4.0, 3.0, 2.0, 1.0]]),
        torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]).bool(),
        torch.tensor([1, 0, 1]),
        keep=2,
    )
    assert counters.tolist() == [[5, 1, 0, 1], [0, 1, 1, 1]]


def test_z_scores_are_of_the_token_mean() -> None:
    """Tokens (1, 0) and (3, 0) have the mean (2, 0): |2 - 5| / 2 and |0 - 1| / 4."""
    activations = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])
    assert z_scores(activations, torch.tensor([5.0, 1.0]), torch.tensor([2.0, 4.0])).tolist() == [[1.5, 0.25]]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.data())
def test_top_k_is_a_stable_sort(values: list[int], data: st.DataObject) -> None:
    """The largest, and of equal ones those that come first."""
    keep = data.draw(st.integers(1, len(values)))
    chosen = set(sorted(range(len(values)), key=lambda i: -values[i])[:keep])
    mask = top_k_mask(torch.tensor([values, values]), keep)
    assert mask.tolist() == [[i in chosen for i in range(len(values))]] * 2


@pytest.mark.parametrize("keep", [0, 4])
def test_top_k_of_none_or_too_many_is_refused(keep: int) -> None:
    """The error gives the range."""
    with pytest.raises(ValueError, match="keep must be 1 to 3"):
        top_k_mask(torch.zeros(2, 3), keep)
