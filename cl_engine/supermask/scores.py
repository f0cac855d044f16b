"""Weights that are never trained by the mask phase, and the scores that are."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from cl_engine.masks.topk import top_share


def fan_in(shape: torch.Size) -> int:
    """Return how many inputs one output unit of a linear or convolution weight reads."""
    return math.prod(shape[1:])


def signed_kaiming_constant(shape: torch.Size, random: torch.Generator) -> Tensor:
    """Draw weights of one magnitude, sqrt(2 / fan_in), and random signs, float32."""
    signs = torch.randint(0, 2, shape, generator=random, dtype=torch.float32) * 2 - 1
    return signs * math.sqrt(2 / fan_in(shape))


def fresh_scores(shape: torch.Size, random: torch.Generator) -> Tensor:
    """Draw scores from U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), float32."""
    bound = 1 / math.sqrt(fan_in(shape))
    return (torch.rand(shape, generator=random) * 2 - 1) * bound


def top_masks(scores: Mapping[str, Tensor], densities: Mapping[str, float]) -> dict[str, Tensor]:
    """Turn each layer's scores into a boolean mask of its density."""
    return {name: top_share(score.detach(), densities[name]) for name, score in scores.items()}


def threshold_masks(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn each layer's scores into a boolean mask of those that are not negative."""
    return {name: score.detach() >= 0 for name, score in scores.items()}


def straight_through_threshold(score: Tensor) -> Tensor:
    """Return the mask of scores that are not negative, as 0 and 1; gradients pass through unchanged."""
    return (score.detach() >= 0).to(score.dtype) + (score - score.detach())


def straight_through_mask(score: Tensor, density: float) -> Tensor:
    """Return the top-share mask as 0 and 1, through which gradients pass as if it were |score|.

    With W_eff = W * mask, a score's gradient is dL/dW_eff * W * sign(score).
    """
    magnitude = score.abs()
    mask = top_share(magnitude.detach(), density).to(score.dtype)
    # The difference is exactly zero, so the values stay 0 and 1.
    return mask + (magnitude - magnitude.detach())
