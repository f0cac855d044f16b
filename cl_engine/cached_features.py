"""Base features computed once per sample and used by several methods."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cl_engine.backbones import BlockwiseBackbone
from cl_engine.backbones.blockwise import feature_width
from cl_engine.features import BaseFeatures, extract
from cl_engine.samples import SampleSet


class CachedExtract:
    """Stands in for `features.extract` and remembers every sample's frozen pass by sample id.

    For comparisons: the methods see the same features and pay for them once. The cache holds, per
    sample, the layer features of the last blocks and the tokens to continue from, in memory.

    Args:
        backbone: the frozen network; another one's features would be wrong, so asking for it fails.
        feature_blocks: most blocks that any method reads.
        continue_from: the block that every method with adapters continues from; None where none has any,
            and then no tokens are kept.
    """

    def __init__(self, backbone: BlockwiseBackbone, feature_blocks: int, continue_from: int | None) -> None:
        self._backbone = backbone
        self._feature_blocks, self._continue_from = feature_blocks, continue_from
        self._features: dict[str, Tensor] = {}
        self._tokens: dict[str, Tensor] = {}

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
        """Return base features as `features.extract` would.

        Raises:
            ValueError: another backbone, more blocks, or another block to continue from.
        """
        if backbone is not self._backbone or feature_blocks > self._feature_blocks:
            raise ValueError(f"the cache holds {self._feature_blocks} blocks of {self._backbone.id} only")
        if continue_from not in (None, self._continue_from):
            raise ValueError(f"the cache continues from block {self._continue_from}, not {continue_from}")
        chosen = list(range(len(samples.labels))) if indices is None else list(indices)
        missing = [i for i in chosen if samples.ids[i] not in self._features]
        if missing:
            fresh = extract(
                backbone,
                samples,
                self._feature_blocks,
                self._continue_from,
                indices=missing,
                on_batch=on_batch,
            )
            self.add([samples.ids[i] for i in missing], fresh)
        width = feature_width(backbone, feature_blocks)
        ids = [samples.ids[i] for i in chosen]
        if not ids:
            return BaseFeatures(torch.zeros(0, width, device=backbone.device), None)
        features = torch.stack([self._features[i] for i in ids])[:, -width:]
        tokens = None if continue_from is None else torch.stack([self._tokens[i] for i in ids])
        return BaseFeatures(features, tokens)

    def key(self, ids: Sequence[str]) -> str:
        """Name what is remembered of some samples: a digest of network, format, blocks and ids."""
        digest = hashlib.sha256()
        parts = (
            self._backbone.id,
            str(self._backbone.dtype),
            self._feature_blocks,
            self._continue_from,
            *ids,
        )
        for part in parts:
            digest.update(f"{part}\0".encode())
        return digest.hexdigest()

    def add(self, ids: Sequence[str], base: BaseFeatures) -> None:
        """Remember base features that were computed with this cache's blocks, row i of sample `ids[i]`."""
        assert (base.tokens is None) == (self._continue_from is None)
        features = base.features.to(self._backbone.device)
        tokens = None if base.tokens is None else base.tokens.to(self._backbone.device)
        for row, sample_id in enumerate(ids):
            self._features[sample_id] = features[row]
            if tokens is not None:
                self._tokens[sample_id] = tokens[row]

    def whole(self, samples: SampleSet, indices: Sequence[int]) -> BaseFeatures:
        """Return all that is remembered of some samples, computed first where it is missing."""
        return self(self._backbone, samples, self._feature_blocks, self._continue_from, indices=indices)
