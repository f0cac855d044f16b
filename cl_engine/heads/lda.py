"""Streaming linear discriminant analysis: one covariance for all classes, a mean for each.

It needs the same sums as the ridge head: the Gram matrix less what the class means explain is the
scatter within the classes. SLDA (Hayes and Kanan, 2020) keeps the covariance as a running estimate; here
it is exact and does not depend on the order of the samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cl_engine.heads.ridge import RidgeStatistics


def lda_weights(statistics: RidgeStatistics, shrinkage: float) -> Tensor:
    """Return the weights of the linear discriminants, float64 (D + 1, C), intercept last.

        score_c(f) = (f' S^-1 m_c - m_c' S^-1 m_c / 2) / D

    with S = (1 - shrinkage) times the covariance within the classes + shrinkage times its mean variance on
    the diagonal. The division by D changes no answer; it keeps the scores in the range that a softmax
    can be calibrated for.

    Args:
        statistics: of standardised features, each class with a sample at least.
        shrinkage: 0 to 1, above 0 where there are fewer samples than dimensions.

    Raises:
        ValueError: a class has no sample, or the covariance is singular.
    """
    count = statistics.count.sum(dim=0).to(statistics.gram.device)
    if len(count) == 0 or bool((count == 0).any()):
        raise ValueError("every class needs a sample before its mean exists")
    means = statistics.cross.sum(dim=0)[:-1] / count
    dimensions = len(means)
    second = statistics.gram.sum(dim=0)[:-1, :-1]
    covariance = (second - (means * count) @ means.T) / count.sum()
    shrunk = (1 - shrinkage) * covariance
    # Classes of one sample each leave no scatter at all: the unit variance of standardised features then.
    variance = float(covariance.diagonal().mean())
    shrunk.diagonal().add_(shrinkage * (variance if variance > 1e-12 else 1.0))
    factor, failed = torch.linalg.cholesky_ex(shrunk)
    if int(failed):
        raise ValueError(
            f"the covariance of {int(count.sum())} samples in {dimensions} dimensions is singular at "
            f"shrinkage {shrinkage}: raise it"
        )
    directions = torch.cholesky_solve(means, factor)
    intercept = -0.5 * (means * directions).sum(dim=0, keepdim=True)
    return torch.cat([directions, intercept]) / dimensions
