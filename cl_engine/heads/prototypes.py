"""Class means as a classifier, gathered exactly and in any order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class PrototypeStatistics:
    """Sum of the unit-length features of each class, and how many there were.

    Attributes:
        total: float64 (C, D).
        count: int64 (C,).
    """

    total: Tensor
    count: Tensor

    @classmethod
    def empty(cls, dimensions: int) -> PrototypeStatistics:
        """Start with no class."""
        return cls(torch.zeros(0, dimensions, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))

    def updated(self, features: Tensor, columns: Tensor, classes: int) -> PrototypeStatistics:
        """Add samples.

        Args:
            features: (N, D).
            columns: index of each sample's class in the class table, int64 (N,).
            classes: size of the class table, at least as large as before.
        """
        if classes < len(self.count):
            raise ValueError(f"the class table shrank from {len(self.count)} to {classes}")
        unit = normalize(features.double(), dim=1).cpu()
        columns = columns.cpu()
        total = torch.zeros(classes, unit.shape[1], dtype=torch.float64)
        total[: len(self.total)] = self.total
        count = torch.zeros(classes, dtype=torch.int64)
        count[: len(self.count)] = self.count
        total.index_add_(0, columns, unit)
        count.index_add_(0, columns, torch.ones_like(columns))
        return PrototypeStatistics(total, count)

    def without(self, column: int) -> PrototypeStatistics:
        """Drop a class; the others' sums do not hold anything of it."""
        kept = torch.arange(len(self.count)) != column
        return PrototypeStatistics(self.total[kept], self.count[kept])

    def prototypes(self) -> Tensor:
        """Return unit-length prototypes, float32 (C, D)."""
        return normalize(self.total, dim=1).float()


def cosine_scores(features: Tensor, prototypes: Tensor) -> Tensor:
    """Return cosine similarities (N, C) between features (N, D) and unit-length prototypes (C, D)."""
    return normalize(features, dim=1) @ prototypes.to(features.device).T
