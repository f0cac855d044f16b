"""The masked adapter, its subspaces, and the blend of two heads, by numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_engine.sgds.adapter import RoutedAdapter, Subspaces, adapt
from cl_engine.sgds.answer import reranked

LAYERS, UNITS, WIDTH = 2, 3, 8


def drawn_subspaces(count: int, borrowed: list[int | None]) -> Subspaces:
    """Draw some subspaces."""
    random = torch.Generator().manual_seed(3)
    subspaces = Subspaces.none(LAYERS, UNITS, WIDTH)
    for number in range(count):
        subspaces = subspaces.extended(
            torch.randn(LAYERS, UNITS, WIDTH, generator=random),
            torch.randn(LAYERS, WIDTH, UNITS, generator=random),
            borrowed[number],
            torch.rand(LAYERS, WIDTH, generator=random) < 0.5,
        )
    return subspaces


def test_an_adapter_by_hand() -> None:
    """Width 3, one unit. x = (1, 2, 4), masked (1, 0, 4), down (1, 9, .5): hidden 3; up (2, 0, -1) at 0.5.

    The second row's down is the negative: the hidden unit is cut off and nothing is added.
    """
    inputs = torch.tensor([[[1.0, 2.0, 4.0]]]).expand(2, 1, 3)
    mask = torch.tensor([[True, False, True]]).expand(2, 3)
    down = torch.tensor([[[1.0, 9.0, 0.5]], [[-1.0, -9.0, -0.5]]])
    up = torch.tensor([[[2.0], [0.0], [-1.0]]]).expand(2, 3, 1)
    assert adapt(inputs, mask, down, up, 0.5).tolist() == [[[3.0, 0.0, -1.5]], [[0.0, 0.0, 0.0]]]


def test_a_new_session_changes_nothing_earlier() -> None:
    """Own units, borrowed units, masks and effective weights of earlier subspaces are bit-identical."""
    two, three = drawn_subspaces(2, [None, 0]), drawn_subspaces(3, [None, 0, 1])
    for name in ("down", "up", "borrowed", "input_masks"):
        assert torch.equal(getattr(three, name)[:2], getattr(two, name))
    assert torch.equal(three.unit_masks()[:2, : 2 * UNITS], two.unit_masks())
    assert not three.unit_masks()[:2, 2 * UNITS :].any()
    for before, after in zip(
        two.effective(torch.device("cpu"), torch.float32),
        three.effective(torch.device("cpu"), torch.float32),
        strict=True,
    ):
        assert torch.equal(after[:2], before)


def test_borrowed_units_are_fed_forward_too() -> None:
    """The output is the sum of both sessions' units under the borrower's mask; without, just its own."""
    subspaces = drawn_subspaces(2, [None, 0])
    down, up = subspaces.effective(torch.device("cpu"), torch.float32)
    inputs = torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(1))
    mask = subspaces.input_masks[1, 0][None]

    def own(number: int) -> torch.Tensor:
        return adapt(inputs, mask, subspaces.down[number, 0][None], subspaces.up[number, 0][None], 1.0)

    both = adapt(inputs, mask, down[1, 0][None], up[1, 0][None], 1.0)
    torch.testing.assert_close(both, own(0) + own(1))
    alone = adapt(inputs, mask, down[0, 0][None], up[0, 0][None], 1.0)
    torch.testing.assert_close(alone, own(0))
    assert subspaces.unit_masks().int().tolist() == [[1] * 3 + [0] * 3, [1] * 6]


@pytest.mark.parametrize("masked", [True, False])
def test_each_row_of_a_mixed_batch_is_answered_as_if_alone(masked: bool) -> None:
    """Rows routed to different subspaces under different masks share a batch and nothing else."""
    subspaces = drawn_subspaces(3, [None, None, 0])
    down, up = subspaces.effective(torch.device("cpu"), torch.float32)
    random = torch.Generator().manual_seed(2)
    inputs = torch.randn(5, 4, WIDTH, generator=random)
    rows = torch.tensor([2, 0, 1, 2, 0])
    masks = torch.rand(5, LAYERS, WIDTH, generator=random) < 0.5
    mean, spread = torch.randn(LAYERS, WIDTH, generator=random), torch.ones(LAYERS, WIDTH)

    def run(part: list[int]) -> torch.Tensor:
        adapter = RoutedAdapter(
            4, down, up, rows[part], masks[part] if masked else None, 0.7, 3, mean, spread
        )
        return adapter(5, inputs[part])

    together = run([0, 1, 2, 3, 4])
    for row in range(5):
        torch.testing.assert_close(together[row : row + 1], run([row]), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(together[0], together[3])


def test_the_blend_by_hand() -> None:
    """Base (.5, .4, .3), own (-.2, .2) for the session's two at 1: combined .3 and .6, moved by -.1."""
    result = reranked(
        torch.tensor([[0.5, 0.4, 0.3]]),
        torch.tensor([[-0.2, 0.2, 99.0]]),
        torch.tensor([[True, True, False]]),
        torch.tensor([1.0]),
    )
    assert result[0].tolist() == pytest.approx([0.2, 0.5, 0.3])


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([0.25, 1.0, 4.0]))
def test_reranking_stays_inside_the_session(seed: int, head_routing: bool, blend: float) -> None:
    """The answer is one of the routed session's classes, by their combined scores; no other score moves.

    Whether the base head chose the session, or the prototypes did against it; coarse scores make ties.
    """
    random = torch.Generator().manual_seed(seed)
    base = torch.randint(0, 6, (16, 7), generator=random).float() / 3
    own = torch.randn(16, 7, generator=random)
    member = torch.rand(16, 7, generator=random) < 0.4
    routed = base.argmax(dim=1) if head_routing else torch.randint(0, 7, (16,), generator=random)
    member[torch.arange(16), routed] = True
    result = reranked(base, own, member, torch.full((16,), blend))
    assert torch.equal(result[~member], base[~member])
    best = (base + blend * own).where(member, -torch.inf)
    assert torch.equal(result.argmax(dim=1), best.argmax(dim=1))
    torch.testing.assert_close(result.max(dim=1).values, base.max(dim=1).values)
