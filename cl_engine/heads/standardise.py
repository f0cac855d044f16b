"""Fixed per-dimension standardisation of features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Standardiser:
    """Mean and scale of each feature dimension, float32 (D,), fixed by the first session.

    They must never change afterwards: the exact statistics of earlier classes were gathered with them.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def neutral(cls, dimensions: int, device: torch.device) -> Standardiser:
        """Leave features (N, D) as they are."""
        return cls(torch.zeros(dimensions, device=device), torch.ones(dimensions, device=device))

    @classmethod
    def fit(cls, features: Tensor) -> Standardiser:
        """Take mean and standard deviation of features (N, D)."""
        spread = features.std(dim=0, correction=0)
        # A constant dimension carries nothing; dividing by its zero spread would make it infinite.
        return cls(features.mean(dim=0), torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def __call__(self, features: Tensor) -> Tensor:
        """Standardise features (N, D)."""
        return (features - self.mean) / self.scale
