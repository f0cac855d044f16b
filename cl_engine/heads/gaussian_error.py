"""How often a linear head is wrong on classes that are known by their sums alone.

With class means and the covariance that all classes share, the scores that a linear head gives to a sample
of a class are normally distributed, so its mistakes can be counted without the samples: LDA's model of the
data, used to judge and not to classify.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Draws over all classes together, and the least for one class. With 20,000 the count's standard error is
# below sqrt(0.25 / 20,000) = 0.4 points; all strengths are judged on the same draws, so that their
# differences are far more exact.
DRAWS, LEAST_DRAWS = 20_000, 64


def gaussian_error(weights: Tensor, gram: Tensor, cross: Tensor, count: Tensor) -> float:
    """Return the expected number of samples whose best score is not their own class's.

    Args:
        weights: of the head, float64 (D + 1, C), the intercept last.
        gram: sum of f f' over the samples, float64 (D + 1, D + 1), f with a constant 1 appended.
        cross: sum of f by class, float64 (D + 1, C).
        count: samples by class, int64 (C,).
    """
    classes = (count > 0).nonzero().squeeze(1)
    number = count.to(cross.device).double()
    means = cross / number.clamp(min=1)
    scores = weights.T @ means
    # The scatter within classes, seen through the head: W' (G - sum of n m m') W.
    within = weights.T @ gram @ weights - (scores * number) @ scores.T
    freedom = max(int(count.sum()) - len(classes), 1)
    values, vectors = torch.linalg.eigh((within + within.T) / (2 * freedom))
    spread = vectors * values.clamp(min=0).sqrt()
    draws = max(LEAST_DRAWS, DRAWS // len(count)) if len(count) else 0
    normal = torch.randn(draws, len(count), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = normal.to(spread.device) @ spread.T
    wrong = 0.0
    for column in classes.tolist():
        found = (noise + scores[:, column]).argmax(dim=1)
        wrong += float((found != column).double().mean()) * int(count[column])
    return wrong
