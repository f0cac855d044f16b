"""How the masks' overlap follows the classes' similarity."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_engine.masks.overlap import jaccard_matrix


def overlap_similarity_correlation(masks: Tensor, prototypes: Tensor) -> float | None:
    """Correlate, over pairs of classes, the masks' Jaccard overlap with the prototypes' cosine.

    Args:
        masks: bool (C, L, d).
        prototypes: unit length, (C, D).

    Returns:
        Pearson's correlation, or None for fewer than three classes or without any variation.
    """
    overlap = jaccard_matrix(list(masks)).float()
    pairs = torch.triu_indices(len(masks), len(masks), offset=1)
    x, y = overlap[pairs[0], pairs[1]], (prototypes @ prototypes.T)[pairs[0], pairs[1]]
    if len(x) < 3 or float(x.std()) == 0 or float(y.std()) == 0:
        return None
    return round(float(torch.corrcoef(torch.stack([x, y]))[0, 1]), 6)
