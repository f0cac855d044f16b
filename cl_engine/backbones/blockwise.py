"""What the methods here need of a frozen transformer: to enter and leave it at any block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor

from cl_engine.backbones.frozen import Backbone

# Called with the block's index and the normalised input of its MLP, (B, T, d); what it returns is added
# to the block's output, in parallel with the MLP (AdaptFormer).
BlockAdapter = Callable[[int, Tensor], Tensor]


@runtime_checkable
class BlockwiseBackbone(Backbone, Protocol):
    """A frozen transformer, block by block: of images or of texts, the methods need not know.

    Splitting it lets a caller compute the frozen prefix once per sample and run only the blocks that
    have adapters again. Tokens (B, T, d) are opaque to the caller: where T is not the same for every
    input, padding travels inside them (`FrozenTextEncoder`).
    """

    @property
    def depth(self) -> int:
        """Number of blocks."""
        ...

    @property
    def width(self) -> int:
        """Length d of a token in the last block, and in every block that can have an adapter."""
        ...

    @property
    def widths(self) -> tuple[int, ...]:
        """Length of a token after each block; only a hierarchical network's differ."""
        ...

    def embed(self, inputs: Tensor) -> Tensor:
        """Turn a batch of inputs into the first block's input tokens (B, T, d)."""
        ...

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
        ...

    def last(self, tokens: Tensor, start: int, adapter: BlockAdapter | None = None) -> Tensor:
        """Run the blocks from `start` on and return the last one's output tokens (B, T, d)."""
        ...

    def layer_features(self, tokens: Tensor) -> Tensor:
        """Summarise one layer: its CLS token and the mean of its other tokens, float32 (B, 2d).

        A network without a CLS token gives another summary of that length. Both are layer-normed without
        parameters, so that layers of different scale can stand side by side.
        """
        ...


def feature_width(backbone: BlockwiseBackbone, blocks: int) -> int:
    """Return the length of the layer features of the last `blocks` blocks side by side."""
    return 2 * sum(backbone.widths[backbone.depth - blocks :])


def adaptable_blocks(backbone: BlockwiseBackbone) -> int:
    """Return how many of the last blocks can have adapters: those as wide as the last one."""
    widths = backbone.widths
    narrower = [index for index, width in enumerate(widths) if width != backbone.width]
    return len(widths) - (narrower[-1] + 1 if narrower else 0)
