"""Adapters whose bottleneck units belong to sessions and whose inputs are masked.

    output = scale * U_s relu(D_s (m * x)),   x the normalised input of the block's MLP, (B, T, d)

D_s (R, d) and U_s (d, R) are the units of subspace s: those its session trained, then those it borrows,
frozen, from one earlier session (zeros where it borrows none). Every row of a batch may use another
subspace and another mask: the rows' weights are gathered and multiplied in one batched product, so
requests for different sessions share one forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cl_engine.backbones.blockwise import BlockAdapter
from cl_engine.sgds.exploration import top_k_mask, z_scores


@dataclass(frozen=True)
class Subspaces:
    """The bottleneck units of every session.

    Attributes:
        down: (S, L, r, d), own units' input weights.
        up: (S, L, d, r), own units' output weights.
        borrowed: int64 (S,), subspace whose units are fed forward too, -1 for none.
        input_masks: bool (S, L, d), the session's mask of input activations.
    """

    down: Tensor
    up: Tensor
    borrowed: Tensor
    input_masks: Tensor

    def __len__(self) -> int:
        return len(self.down)

    @classmethod
    def none(cls, layers: int, units: int, width: int) -> Subspaces:
        """Start without any subspace."""
        return cls(
            torch.zeros(0, layers, units, width),
            torch.zeros(0, layers, width, units),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, layers, width, dtype=torch.bool),
        )

    def extended(self, down: Tensor, up: Tensor, borrowed: int | None, input_mask: Tensor) -> Subspaces:
        """Append one session's units; nothing that is already there changes."""
        return Subspaces(
            torch.cat([self.down, down[None]]),
            torch.cat([self.up, up[None]]),
            torch.cat([self.borrowed, torch.tensor([-1 if borrowed is None else borrowed])]),
            torch.cat([self.input_masks, input_mask[None]]),
        )

    def last(self) -> tuple[Tensor, Tensor]:
        """Return the last session's own units, (L, r, d) and (L, d, r)."""
        return self.down[-1], self.up[-1]

    def overwritten(self, down: Tensor, up: Tensor) -> Subspaces:
        """Give every session the same units, for the ablation in which units are shared."""
        return replace(
            self, down=down.expand_as(self.down).contiguous(), up=up.expand_as(self.up).contiguous()
        )

    def unit_masks(self) -> Tensor:
        """Return which of all units each subspace feeds forward, bool (S, S * r)."""
        masks = torch.zeros(len(self), len(self), self.down.shape[2], dtype=torch.bool)
        for s, borrowed in enumerate(self.borrowed.tolist()):
            masks[s, s] = True
            if borrowed >= 0:
                masks[s, borrowed] = True
        return masks.flatten(1)

    def effective(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return own and borrowed units side by side: (S, L, 2r, d) and (S, L, d, 2r)."""
        lender = self.borrowed.clamp(min=0)
        has_lender = (self.borrowed >= 0).view(-1, 1, 1, 1)
        down = torch.cat([self.down, self.down[lender] * has_lender], dim=2)
        up = torch.cat([self.up, self.up[lender] * has_lender], dim=3)
        return down.to(device, dtype), up.to(device, dtype)


def adapt(inputs: Tensor, mask: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Compute masked adapter outputs (B, T, d), one subspace per row.

    Args:
        inputs: (B, T, d).
        mask: (B, d), 0 or 1.
        down: (B, R, d).
        up: (B, d, R).
        scale: factor on the output.
    """
    hidden = torch.relu(torch.bmm(inputs * mask[:, None, :].to(inputs), down.transpose(1, 2)))
    return torch.bmm(hidden, up.transpose(1, 2)) * scale


class RoutedAdapter:
    """Adapter of one batch whose rows have been routed to subspaces.

    Args:
        first_block: block of the first adapter.
        down, up: effective weights of all subspaces, from `Subspaces.effective`.
        rows: int64 (B,), subspace of each row.
        masks: bool (B, L, d), input mask of each row; None: top-K of each input's own z-scores.
        scale: factor on the output.
        keep, mean, scale_of_activations: for the top-K: K, and (L, d) statistics of the z-scores.
        shared: the first session's adapters, added for every row; None for none.
    """

    def __init__(
        self,
        first_block: int,
        down: Tensor,
        up: Tensor,
        rows: Tensor,
        masks: Tensor | None,
        scale: float,
        keep: int,
        mean: Tensor,
        scale_of_activations: Tensor,
        shared: BlockAdapter | None = None,
    ) -> None:
        self.first_block = first_block
        self.down, self.up = down[rows], up[rows]
        self.masks = masks
        self.scale = scale
        self.keep = keep
        self.mean, self.spread = mean, scale_of_activations
        self.shared = shared

    def __call__(self, index: int, inputs: Tensor) -> Tensor:
        """Return what is added to block `index`, (B, T, d)."""
        layer = index - self.first_block
        if self.masks is None:
            mask = top_k_mask(z_scores(inputs, self.mean[layer], self.spread[layer]), self.keep)
        else:
            mask = self.masks[:, layer]
        own = adapt(inputs, mask, self.down[:, layer], self.up[:, layer], self.scale)
        return own if self.shared is None else own + self.shared(index, inputs)
