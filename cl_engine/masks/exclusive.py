"""What of a mask no earlier mask has taken."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def union(masks: Iterable[Tensor], like: Tensor) -> Tensor:
    """Join boolean masks with OR; all False, of the shape of `like`, when there is none.

    Raises:
        ValueError: a mask is not boolean or of another shape.
    """
    joined = torch.zeros_like(like, dtype=torch.bool)
    for mask in masks:
        if mask.dtype != torch.bool or mask.shape != joined.shape:
            raise ValueError(
                f"mask must be boolean of shape {tuple(joined.shape)}, is {mask.dtype} {tuple(mask.shape)}"
            )
        joined |= mask
    return joined


def exclusive(mask: Tensor, earlier: Iterable[Tensor]) -> Tensor:
    """Return the part of a mask that no earlier mask holds: M_t AND NOT (M_0 OR ... OR M_{t-1}).

    Raises:
        ValueError: a mask is not boolean or the shapes differ.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, is {mask.dtype}")
    return mask & ~union(earlier, like=mask)
