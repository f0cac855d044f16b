"""A frozen TinyViT of a few thousand random weights: two stages of attention, of different widths."""

from __future__ import annotations

import torch
from timm.models.tiny_vit import TinyVit

from cl_engine.backbones.tiny_vit import FrozenTinyViT

SIZE = 32


def small_tiny_vit() -> FrozenTinyViT:
    """Build it; every call gives the same weights. Its windows of 3 do not divide its grids."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TinyVit(
            num_classes=0,
            embed_dims=(8, 16, 24),
            depths=(1, 1, 2),
            num_heads=(1, 2, 2),
            window_sizes=(3, 3, 3),
            drop_path_rate=0.0,
        )
    return FrozenTinyViT(
        f"tiny@{SIZE}px-0", model, SIZE, (0.5,) * 3, (0.25,) * 3, torch.device("cpu"), torch.float32
    )
