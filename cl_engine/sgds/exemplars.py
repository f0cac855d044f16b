"""Exemplars: a few samples of every class, kept as the frozen tokens that enter the first adapted block.

They are shown to later sessions' units beside the new classes, and are what a session's own head knows of
the rest of the world. The first of each class is never replayed: blends are judged on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_engine.features import BaseFeatures

PREFIX = "exemplars."


@dataclass(frozen=True)
class Exemplars:
    """Stored samples of the classes learnt so far.

    Attributes:
        base: features (N, D) under the first session's adapters, and tokens (N, T, d).
        columns: class column of each, int64 (N,).
        judging: bool (N,), held back from replay.
    """

    base: BaseFeatures
    columns: Tensor
    judging: Tensor

    @classmethod
    def chosen(
        cls, base: BaseFeatures, columns: Tensor, ids: Sequence[str], unseen: Tensor, per_class: int
    ) -> Exemplars:
        """Choose exemplars of every class that occurs.

        Args:
            base: of the session's samples of new classes.
            columns: class column of each sample.
            ids: of the samples; their hash decides.
            unseen: bool (N,), samples that no weight was trained on: they come first, to judge on.
            per_class: how many of each class.
        """
        order = sorted(
            range(len(ids)), key=lambda i: (not unseen[i], hashlib.sha256(ids[i].encode()).digest())
        )
        taken: dict[int, int] = {}
        rows, judging = [], []
        for row in order:
            column = int(columns[row])
            if taken.get(column, 0) < per_class:
                rows.append(row)
                # A single exemplar of a class is worth more in training.
                judging.append(column not in taken and per_class > 1)
                taken[column] = taken.get(column, 0) + 1
        index = torch.tensor(rows, dtype=torch.int64)
        chosen = base.rows(index.to(base.features.device))
        return cls(chosen, columns[index], torch.tensor(judging, dtype=torch.bool))

    def extended(self, others: Exemplars) -> Exemplars:
        """Append those of other classes."""
        tokens = (self.base.tokens, others.base.tokens)
        assert tokens[0] is not None
        assert tokens[1] is not None
        return Exemplars(
            BaseFeatures(
                torch.cat([self.base.features, others.base.features]), torch.cat([tokens[0], tokens[1]])
            ),
            torch.cat([self.columns, others.columns]),
            torch.cat([self.judging, others.judging]),
        )

    def without(self, column: int) -> Exemplars:
        """Drop those of a class, and its column from the numbering."""
        kept = self.rows(self.columns != column)
        return Exemplars(kept.base, kept.columns - (kept.columns > column).long(), kept.judging)

    def drawn(self, most: int, seed: int) -> Exemplars:
        """Draw at most so many of those that may be replayed."""
        free = (~self.judging).nonzero().squeeze(1)
        order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed))
        return self.rows(free[order[:most]])

    def rows(self, index: Tensor) -> Exemplars:
        """Select some by position or by a mask."""
        device = self.base.features.device
        return Exemplars(self.base.rows(index.to(device)), self.columns[index], self.judging[index])

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        assert self.base.tokens is not None
        return {
            f"{PREFIX}features": self.base.features.cpu(),
            f"{PREFIX}tokens": self.base.tokens.cpu(),
            f"{PREFIX}columns": self.columns,
            f"{PREFIX}judging": self.judging.to(torch.uint8),
        }

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Exemplars | None:
        """Read back what `tensors` returned; None where nothing was kept."""
        if f"{PREFIX}columns" not in tensors:
            return None
        features, tokens, columns, judging = (
            tensors[PREFIX + name] for name in ("features", "tokens", "columns", "judging")
        )
        return cls(BaseFeatures(features.to(device), tokens.to(device)), columns, judging.bool())
