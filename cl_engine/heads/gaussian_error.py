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


def gaussian_error(means: Tensor, moment: Tensor, count: Tensor) -> float:
    """Return the expected number of samples whose best score is not their own class's.

    Args:
        means: the mean scores of each class's samples, float64 (C, C), a column a class.
        moment: sum of s s' over the samples' scores s, float64 (C, C).
        count: samples by class, int64 (C,).
    """
    classes = (count > 0).nonzero().squeeze(1)
    # The scatter within classes: what is left of all once the classes' means are taken off.
    within = moment - (means * count.to(means.device)) @ means.T
    freedom = max(int(count.sum()) - len(classes), 1)
    values, vectors = torch.linalg.eigh((within + within.T) / (2 * freedom))
    spread = vectors * values.clamp(min=0).sqrt()
    draws = max(LEAST_DRAWS, DRAWS // len(count)) if len(count) else 0
    normal = torch.randn(draws, len(count), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = normal.to(spread.device) @ spread.T
    wrong = 0.0
    for column in classes.tolist():
        found = (noise + means[:, column]).argmax(dim=1)
        wrong += float((found != column).double().mean()) * int(count[column])
    return wrong
