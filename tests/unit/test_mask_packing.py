"""Bit-packing of masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_engine.masks.packing import pack, unpack


@given(st.lists(st.integers(0, 5), max_size=3), st.integers(0, 2**32 - 1))
def test_a_mask_of_any_shape_survives(shape: list[int], seed: int) -> None:
    """Packing and unpacking gives the mask back, with eight entries a byte."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == ((mask.numel() + 7) // 8,)
    assert torch.equal(unpack(packed, shape), mask)


def test_the_little_end_comes_first() -> None:
    """Entry 0 is bit 0 of byte 0; the spare bits of the last byte are zero."""
    mask = torch.tensor([True, False, True, False, False, False, False, False, False, True])
    assert pack(mask).tolist() == [0b101, 0b10]


def test_a_transposed_mask_is_packed_in_its_own_order() -> None:
    """A view that is not contiguous is packed row by row as it reads."""
    mask = torch.tensor([[True, False, False], [True, True, False]]).T
    assert torch.equal(unpack(pack(mask), (3, 2)), mask)


def test_only_booleans_are_masks() -> None:
    """A mask of numbers is refused with its type."""
    with pytest.raises(ValueError, match=r"boolean, is torch\.int64"):
        pack(torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize(
    "packed", [torch.zeros(1, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8), torch.zeros(2)]
)
def test_bytes_of_another_count_or_type_are_refused(packed: torch.Tensor) -> None:
    """Nine entries need two bytes of uint8."""
    with pytest.raises(ValueError, match="expected 2 bytes"):
        unpack(packed, (3, 3))
