"""Turn scores into probabilities, and distances into an unknown score, by what the holdout shows."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

# Softmax sharpness: ridge scores lie near 0 and 1, cosines within a few tenths of each other.
SHARPNESSES = tuple(math.pow(2.0, exponent / 2) for exponent in range(17))
DEFAULT_SHARPNESS = 8.0
# Enough to resolve the 99th percentile; keeps the table at 4 KiB.
MAX_DISTANCES = 1024


def fit_sharpness(scores: Tensor, columns: Tensor) -> float:
    """Return the factor on the scores that gives the holdout the highest likelihood.

    The targets are smoothed as if one more sample of each class had been seen (Laplace's rule; Platt
    does the same): a small holdout without a mistake would otherwise ask for endless confidence.

    Args:
        scores: (N, C).
        columns: true columns, int64 (N,).
    """
    if len(scores) == 0 or scores.shape[1] < 2:
        return DEFAULT_SHARPNESS
    samples, classes = scores.shape
    # The true class's target is then (N + 1) / (N + C), every other's 1 / (N + C).
    smoothing = classes / (samples + classes)
    truth = columns.to(scores.device)
    losses = [float(cross_entropy(scores.float() * s, truth, label_smoothing=smoothing)) for s in SHARPNESSES]
    return SHARPNESSES[losses.index(min(losses))]


def merge_distances(known: Tensor, new: Tensor) -> Tensor:
    """Merge two sets of holdout distances into one sorted table, thinned evenly to its largest size."""
    merged = torch.cat([known.cpu().float(), new.detach().cpu().float()]).sort().values
    if len(merged) <= MAX_DISTANCES:
        return merged
    return merged[torch.linspace(0, len(merged) - 1, MAX_DISTANCES).round().long()]


def unknown_score(distances: Tensor, table: Tensor) -> Tensor:
    """Return for each distance the share of holdout distances below it, float32 (N,), 0 to 1."""
    if len(table) == 0:
        return torch.zeros_like(distances, dtype=torch.float32)
    rank = torch.searchsorted(table.to(distances.device), distances.float().contiguous())
    return rank.float() / len(table)
