"""Multi-layer features of a frozen transformer, with the tokens to continue from.

The middle layers of the frozen network cannot be forgotten and hold most of what adapters would have
to relearn, so every learner here reads the CLS token and the mean of the other tokens of its last blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cl_engine.backbones import BlockwiseBackbone
from cl_engine.backbones.blockwise import feature_width
from cl_engine.backbones.frozen import in_batches
from cl_engine.samples import SampleSet

# 32 images of 257 tokens and width 384 need about 0.4 GiB of activations in bfloat16, 256 of them 3.2 GiB; a
# GPU needs that many to be busy. Compiling the blocks takes a CPU as long as it saves in many minutes.
_CPU_BATCH, _GPU_BATCH = 32, 256


@dataclass(frozen=True)
class BaseFeatures:
    """What one pass of the frozen network leaves behind.

    Attributes:
        features: float32 (N, D), layer features of the last blocks side by side.
        tokens: input tokens of the first adapted block (N, T, d), in the backbone's type; None where
            nobody continues from there.
    """

    features: Tensor
    tokens: Tensor | None

    def rows(self, index: Tensor) -> BaseFeatures:
        """Select some samples."""
        return BaseFeatures(self.features[index], None if self.tokens is None else self.tokens[index])


class Extract(Protocol):
    """How learners get base features: `extract`, or something that remembers what it has computed."""

    def __call__(
        self,
        backbone: BlockwiseBackbone,
        samples: SampleSet,
        feature_blocks: int,
        continue_from: int | None = None,
        *,
        indices: Sequence[int] | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> BaseFeatures:
        """Extract base features of a sample set; see `extract`."""
        ...


def base_pass(
    backbone: BlockwiseBackbone,
    inputs: Tensor,
    feature_blocks: int,
    continue_from: int | None,
) -> BaseFeatures:
    """Run the frozen network once.

    Args:
        backbone: the frozen network.
        inputs: as the backbone decodes them, (B, ...).
        feature_blocks: how many of the last blocks are summarised.
        continue_from: block whose input tokens are kept, None for none.
    """
    first = backbone.depth - feature_blocks
    split = backbone.depth if continue_from is None else continue_from
    tokens = backbone.embed(inputs)
    kept = tokens
    summaries = []
    for index, tokens in enumerate(backbone.advance(tokens, 0, backbone.depth)):  # noqa: B020
        if index + 1 == split:
            kept = tokens
        if index >= first:
            summaries.append(backbone.layer_features(tokens))
    return BaseFeatures(torch.cat(summaries, dim=1), None if continue_from is None else kept)


def extraction_batch(device: torch.device) -> int:
    """Return how many samples are read and passed through the frozen network at a time."""
    return _CPU_BATCH if device.type == "cpu" else _GPU_BATCH


@torch.no_grad()
def extract(
    backbone: BlockwiseBackbone,
    samples: SampleSet,
    feature_blocks: int,
    continue_from: int | None = None,
    *,
    indices: Sequence[int] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> BaseFeatures:
    """Extract base features of a sample set; results stay on the backbone's device.

    Not in inference mode: training continues from the tokens, and autograd refuses inference tensors.

    Args:
        backbone: the frozen network.
        samples: what to read.
        feature_blocks: how many of the last blocks are summarised.
        continue_from: block whose input tokens are kept, None for none.
        indices: which samples; all if None.
        on_batch: called with the number of samples finished.
    """
    chosen = list(range(len(samples.labels))) if indices is None else list(indices)
    first = backbone.depth - feature_blocks
    if not 0 <= first < backbone.depth:
        raise ValueError(f"feature_blocks must be 1 to {backbone.depth}, is {feature_blocks}")
    if not chosen:
        width = feature_width(backbone, feature_blocks)
        return BaseFeatures(torch.zeros(0, width, device=backbone.device), None)

    def one_batch(start: int, stop: int) -> BaseFeatures:
        result = base_pass(backbone, samples.load(chosen[start:stop]), feature_blocks, continue_from)
        if on_batch is not None:
            on_batch(stop)
        return result

    parts = in_batches(one_batch, len(chosen), extraction_batch(backbone.device), backbone.device)
    tokens = None
    if continue_from is not None:
        tokens = torch.cat([part.tokens for part in parts if part.tokens is not None])
    return BaseFeatures(torch.cat([part.features for part in parts]), tokens)
