"""Bit-packed boolean tensors: eight mask entries a byte, little end first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pack(mask: Tensor) -> Tensor:
    """Pack a boolean tensor of any shape into uint8 (ceil(numel / 8),)."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, is {mask.dtype}")
    return torch.from_numpy(np.packbits(mask.detach().cpu().reshape(-1).numpy(), bitorder="little"))


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack what `pack` made into a boolean tensor of the given shape.

    Raises:
        ValueError: the byte count does not belong to that shape.
    """
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != (count + 7) // 8:
        raise ValueError(
            f"packed mask of {packed.numel()} {packed.dtype} does not fit shape {tuple(shape)}: "
            f"expected {(count + 7) // 8} bytes"
        )
    bits = np.unpackbits(packed.cpu().numpy(), count=count, bitorder="little")
    return torch.from_numpy(bits.astype(bool)).reshape(tuple(shape))
