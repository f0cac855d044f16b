"""Phase 1, semantic exploration: random masks, and counters of what each class activates.

A unit counts for a class when it is among the top-K of a sample's masked z-scores. Z-scores, because a
few outlier dimensions dominate the raw activations of a vision transformer and would be everyone's
top-K.
"""

from __future__ import annotations

import torch
from torch import Tensor


def top_k_mask(values: Tensor, keep: int) -> Tensor:
    """Return a boolean mask of the `keep` largest values along the last dimension.

    Ties go to the lower index, so that equal counters give the same mask on every machine.
    """
    if not 1 <= keep <= values.shape[-1]:
        raise ValueError(f"keep must be 1 to {values.shape[-1]}, is {keep}")
    order = torch.argsort(values, dim=-1, descending=True, stable=True)[..., :keep]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, order, True)


def z_scores(activations: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return |token mean - mean| / scale, float32 (B, d), for activations (B, T, d)."""
    return ((activations.float().mean(dim=1) - mean) / scale).abs()


def count_active(counters: Tensor, scores: Tensor, masks: Tensor, rows: Tensor, keep: int) -> None:
    """Count in place, for each sample, the `keep` units with the highest masked score.

    Args:
        counters: (C, d), one row per class.
        scores: z-scores (B, d).
        masks: the masks the samples passed, (B, d).
        rows: class row of each sample, int64 (B,).
        keep: K.
    """
    active = top_k_mask(scores * masks, keep) & masks.bool()
    counters.index_add_(0, rows.to(counters.device), active.to(counters))
