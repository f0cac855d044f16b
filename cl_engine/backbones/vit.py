"""A frozen vision transformer that can be entered and left at any block."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor
from torch.nn.functional import layer_norm

from cl_engine.backbones.blockwise import BlockAdapter
from cl_engine.backbones.frozen import FrozenModel


class FrozenVisionTransformer(FrozenModel):
    """A plain timm vision transformer as a `BlockwiseBackbone`."""

    model: VisionTransformer

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.model.blocks)

    @property
    def width(self) -> int:
        """Length d of a token."""
        return int(self.model.embed_dim)

    @property
    def widths(self) -> tuple[int, ...]:
        """Length of a token after each block."""
        return (self.width,) * self.depth

    def embed(self, inputs: Tensor) -> Tensor:
        """Turn uint8 images (B, 3, S, S) into the first block's input tokens (B, T, d)."""
        tokens = self.model.patch_embed(self.normalise(inputs))
        tokens = self.model.patch_drop(self.model._pos_embed(tokens))
        result: Tensor = self.model.norm_pre(tokens)
        return result

    def advance(
        self, tokens: Tensor, start: int, stop: int, adapter: BlockAdapter | None = None
    ) -> Iterator[Tensor]:
        """Run blocks start..stop-1 and yield the tokens (B, T, d) after each.

        Args:
            tokens: input of block `start`.
            start: first block to run.
            stop: block to stop before.
            adapter: added in parallel to each block's MLP.
        """
        for index in range(start, stop):
            block: Block = self.model.blocks[index]
            tokens = tokens + block.ls1(block.attn(block.norm1(tokens)))
            normed = block.norm2(tokens)
            change = block.ls2(block.mlp(normed))
            tokens = tokens + change if adapter is None else tokens + change + adapter(index, normed)
            yield tokens

    def last(self, tokens: Tensor, start: int, adapter: BlockAdapter | None = None) -> Tensor:
        """Run the blocks from `start` on and return the last one's output tokens (B, T, d)."""
        (output,) = deque(self.advance(tokens, start, self.depth, adapter), maxlen=1)
        return output

    def layer_features(self, tokens: Tensor) -> Tensor:
        """Summarise one layer: its CLS token and the mean of its patch tokens, float32 (B, 2d).

        Both are layer-normed without parameters, so that layers of different scale can stand side by
        side.
        """
        normed = layer_norm(tokens.float(), (tokens.shape[-1],))
        patches = normed[:, self.model.num_prefix_tokens :].mean(dim=1)
        return torch.cat([normed[:, 0], patches], dim=1)

    @torch.inference_mode()
    def features(self, inputs: Tensor) -> Tensor:
        """Return the last block's layer features, float32 (B, 2d)."""
        return self.layer_features(self.last(self.embed(inputs), 0))
