"""Exemplars: a few samples of every class, kept as the frozen tokens that enter the first adapted block.

They are shown to later sessions' units beside the new classes, and later own heads answer zero for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PREFIX = "exemplars."


@dataclass(frozen=True)
class Exemplars:
    """Stored samples of the classes learnt so far.

    Attributes:
        tokens: input of the first adapted block, in the backbone's type, (N, T, d).
        columns: class column of each, int64 (N,).
    """

    tokens: Tensor
    columns: Tensor

    @classmethod
    def chosen(cls, tokens: Tensor, columns: Tensor, ids: Sequence[str], per_class: int) -> Exemplars:
        """Choose exemplars of every class that occurs, by a hash of the samples' ids.

        Args:
            tokens: (N, T, d).
            columns: class column of each sample, int64 (N,).
            ids: of the samples.
            per_class: how many of each class.
        """
        taken: dict[int, int] = {}
        rows = []
        for row in sorted(range(len(ids)), key=lambda i: hashlib.sha256(ids[i].encode()).digest()):
            column = int(columns[row])
            if taken.get(column, 0) < per_class:
                rows.append(row)
                taken[column] = taken.get(column, 0) + 1
        return cls(tokens, columns).rows(torch.tensor(rows, dtype=torch.int64))

    def extended(self, others: Exemplars) -> Exemplars:
        """Append those of other classes."""
        return Exemplars(torch.cat([self.tokens, others.tokens]), torch.cat([self.columns, others.columns]))

    def without(self, column: int) -> Exemplars:
        """Drop those of a class, and its column from the numbering."""
        kept = self.rows((self.columns != column).nonzero().squeeze(1))
        return Exemplars(kept.tokens, kept.columns - (kept.columns > column).long())

    def drawn(self, most: int, seed: int) -> Exemplars:
        """Draw at most so many."""
        order = torch.randperm(len(self.columns), generator=torch.Generator().manual_seed(seed))
        return self.rows(order[:most])

    def rows(self, index: Tensor) -> Exemplars:
        """Select some by position."""
        return Exemplars(self.tokens[index.to(self.tokens.device)], self.columns[index])

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {f"{PREFIX}tokens": self.tokens.cpu(), f"{PREFIX}columns": self.columns}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Exemplars | None:
        """Read back what `tensors` returned; None where nothing was kept."""
        if f"{PREFIX}columns" not in tensors:
            return None
        return cls(tensors[f"{PREFIX}tokens"].to(device), tensors[f"{PREFIX}columns"])
