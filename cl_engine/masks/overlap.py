"""How much masks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Counts up to 2^24 are exact in float32, and a block of this many columns stays below that.
_BLOCK = 1 << 20


def intersection_counts(masks: Sequence[Tensor]) -> Tensor:
    """Count the entries each pair of masks shares.

    Args:
        masks: M boolean masks of one shape.

    Returns:
        int64 (M, M), symmetric, with each mask's own size on the diagonal.

    Raises:
        ValueError: there is no mask, one is not boolean, or the shapes differ.
    """
    if not masks:
        raise ValueError("masks is empty: pass at least one mask")
    shape = masks[0].shape
    for mask in masks:
        if mask.dtype != torch.bool or mask.shape != shape:
            raise ValueError(
                f"masks must be boolean of one shape {tuple(shape)}, one is {mask.dtype} {tuple(mask.shape)}"
            )
    flat = [mask.reshape(-1) for mask in masks]
    counts = torch.zeros(len(masks), len(masks), dtype=torch.int64, device=masks[0].device)
    for start in range(0, flat[0].numel(), _BLOCK):
        block = torch.stack([mask[start : start + _BLOCK] for mask in flat]).float()
        counts += (block @ block.T).long()
    return counts


def jaccard_matrix(masks: Sequence[Tensor]) -> Tensor:
    """Return |A AND B| / |A OR B| for each pair of masks, float64 (M, M); two empty masks have 1.

    Raises:
        ValueError: there is no mask, one is not boolean, or the shapes differ.
    """
    shared = intersection_counts(masks)
    sizes = shared.diagonal()
    either = sizes[:, None] + sizes[None, :] - shared
    return torch.where(either > 0, shared.double() / either.clamp(min=1), 1.0)


def coverage_matrix(masks: Sequence[Tensor]) -> Tensor:
    """Return |A AND B| / |A|, the share of row A that column B holds, float64 (M, M); an empty A has 0.

    Raises:
        ValueError: there is no mask, one is not boolean, or the shapes differ.
    """
    shared = intersection_counts(masks)
    return shared.double() / shared.diagonal()[:, None].clamp(min=1)
