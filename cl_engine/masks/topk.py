"""Masks that keep the entries with the highest scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def top_share(scores: Tensor, density: float) -> Tensor:
    """Keep the given share of entries: those with the largest absolute score.

    The rank rule of edge-popup: of n entries the int((1 - density) * n) smallest |scores| are dropped.
    Among equal scores the later entry, in row-major order, is kept, so the count is exact and the answer
    the same on every run.

    Args:
        scores: real scores of any shape.
        density: share to keep, above 0 and at most 1.

    Returns:
        Boolean mask of the shape of `scores`.

    Raises:
        ValueError: the density is out of range, or there is nothing to choose from.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}: choose a share above 0 and at most 1")
    return keep_largest(scores.abs(), scores.numel() - int((1 - density) * scores.numel()))


def keep_largest(values: Tensor, count: int) -> Tensor:
    """Keep the `count` largest values; of equal ones the later, in row-major order.

    Raises:
        ValueError: there are fewer than `count` values, or `count` is negative.
    """
    total = values.numel()
    if not 0 <= count <= total:
        raise ValueError(f"count is {count}: choose between 0 and the {total} values there are")
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    flat = values.detach().reshape(-1)
    # Selection instead of a sort: linear time, and this runs in every training step.
    threshold = _smallest_kept(flat, total - count)
    if flat.device.type == "cpu":
        kept = flat >= threshold
        if int(kept.sum()) == count:
            return kept.reshape(values.shape)
    above = flat > threshold
    ties = flat == threshold
    wanted = count - above.sum()
    from_the_end = ties.flip(0).cumsum(0).flip(0)
    return (above | (ties & (from_the_end <= wanted))).reshape(values.shape)


def _smallest_kept(flat: Tensor, dropped: int) -> Tensor:
    """Return the value of rank `dropped`, from 0, of values (N,)."""
    if flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.float64):
        # NumPy's vectorised selection takes a half to a third of torch's time on a CPU.
        return torch.as_tensor(np.partition(flat.numpy(), dropped)[dropped])
    return flat.kthvalue(dropped + 1).values
