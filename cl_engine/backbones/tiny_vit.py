"""A frozen TinyViT (Wu et al., ECCV 2022) that can be entered and left at any attention block.

It is hierarchical: a convolutional stem and stage, then stages of window attention whose tokens become
fewer and wider. The blocks counted here are those of the attention stages, 10 in the 5M model: 2 of width
128, 6 of 160, 2 of 320. Each merges its stage's patches first if it is the stage's first one, so the tokens
that enter it are still those of the stage before. There is no CLS token: a layer is summarised by the mean
and the standard deviation of its tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from timm.models.tiny_vit import Attention, TinyVit, TinyVitBlock
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad

from cl_engine.backbones.blockwise import BlockAdapter
from cl_engine.backbones.frozen import FrozenModel


class FrozenTinyViT(FrozenModel):
    """A timm TinyViT as a `BlockwiseBackbone`; adapters fit in the blocks of its last stage."""

    model: TinyVit

    def __init__(
        self,
        id: str,  # noqa: A002 - the manifest's word
        model: TinyVit,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(id, model, image_size, mean, std, device, dtype)
        self._blocks: list[tuple[nn.Module, TinyVitBlock]] = []
        for stage in list(model.stages)[1:]:
            for place, block in enumerate(stage.blocks):
                # Only a stage's first block finds the patches unmerged.
                self._blocks.append((stage.downsample if place == 0 else nn.Identity(), block))
        with torch.no_grad():
            # Kept by the model at first use: kept from inference mode, they could not be trained through.
            for module in model.modules():
                if isinstance(module, Attention):
                    module.get_attention_biases(device)

    @property
    def depth(self) -> int:
        """Number of attention blocks."""
        return len(self._blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """Length of a token after each block."""
        return tuple(block.dim for _, block in self._blocks)

    @property
    def width(self) -> int:
        """Length d of a token in the last stage."""
        return self.widths[-1]

    def embed(self, inputs: Tensor) -> Tensor:
        """Turn uint8 images (B, 3, S, S) into what the first attention stage reads, (B, (S/4)^2, 64)."""
        grid = self.model.stages[0](self.model.patch_embed(self.normalise(inputs)))
        result: Tensor = grid.flatten(2).transpose(1, 2)
        return result

    def advance(
        self, tokens: Tensor, start: int, stop: int, adapter: BlockAdapter | None = None
    ) -> Iterator[Tensor]:
        """Run blocks start..stop-1 and yield the tokens (B, T, d) after each; T and d are the stage's.

        Args:
            tokens: output of block `start` - 1.
            start: first block to run.
            stop: block to stop before.
            adapter: added in parallel to each block's MLP.
        """
        for index in range(start, stop):
            merge, block = self._blocks[index]
            grid: Tensor = merge(_to_grid(tokens).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            grid = grid + _windowed_attention(block, grid)
            tokens = block.local_conv(grid.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
            normed = block.mlp.norm(tokens)
            change = block.mlp.fc2(block.mlp.act(block.mlp.fc1(normed)))
            tokens = tokens + change if adapter is None else tokens + change + adapter(index, normed)
            yield tokens

    def last(self, tokens: Tensor, start: int, adapter: BlockAdapter | None = None) -> Tensor:
        """Run the blocks from `start` on and return the last one's output tokens (B, T, d)."""
        (output,) = deque(self.advance(tokens, start, self.depth, adapter), maxlen=1)
        return output

    def layer_features(self, tokens: Tensor) -> Tensor:
        """Summarise one layer: mean and standard deviation of its tokens, float32 (B, 2d).

        The tokens are layer-normed without parameters first, so that layers of different scale can stand
        side by side.
        """
        normed = layer_norm(tokens.float(), (tokens.shape[-1],))
        return torch.cat([normed.mean(dim=1), normed.std(dim=1)], dim=1)

    @torch.inference_mode()
    def features(self, inputs: Tensor) -> Tensor:
        """Return the last block's layer features, float32 (B, 2d)."""
        return self.layer_features(self.last(self.embed(inputs), 0))


def _to_grid(tokens: Tensor) -> Tensor:
    """Lay the tokens (B, H * W, d) of a square out again, (B, H, W, d)."""
    side = math.isqrt(tokens.shape[1])
    return tokens.reshape(len(tokens), side, side, tokens.shape[2])


def _windowed_attention(block: TinyVitBlock, grid: Tensor) -> Tensor:
    """Attend within windows of a grid (B, H, W, d); zeros fill it up to whole windows."""
    size, (batch, height, width, dimensions) = block.window_size, grid.shape
    filled = pad(grid, (0, 0, 0, -width % size, 0, -height % size))
    down, across = filled.shape[1] // size, filled.shape[2] // size
    windows = filled.reshape(batch, down, size, across, size, dimensions).transpose(2, 3)
    attended: Tensor = block.attn(windows.reshape(-1, size * size, dimensions))
    laid_out = attended.reshape(batch, down, across, size, size, dimensions).transpose(2, 3)
    return laid_out.reshape(filled.shape)[:, :height, :width]
