"""How an SGDS generation answers: route by the frozen features, then let the session's own units decide.

Only the order of classes inside the routed session changes in the second pass. So the units of a
session can never take a sample away from another session's classes, and an earlier session's answer
depends on later sessions only through the base head; in a family (see `family`) through the family's too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cl_engine.backbones import BlockwiseBackbone
from cl_engine.features import BaseFeatures, base_pass
from cl_engine.heads.prototypes import cosine_scores
from cl_engine.heads.ridge import ridge_scores
from cl_engine.sgds.adapter import RoutedAdapter
from cl_engine.sgds.content import Content
from cl_engine.sgds.settings import SGDSSettings
from cl_engine.shared_adapters import adapted_base


def adapted_features(
    backbone: BlockwiseBackbone, tokens: Tensor, settings: SGDSSettings, adapter: RoutedAdapter
) -> Tensor:
    """Run the adapted blocks from the prefix tokens (B, T, d); return features, float32 (B, D2)."""
    first = first_adapted_block(backbone, settings)
    first_feature = max(first, backbone.depth - settings.feature_blocks)
    summaries = []
    for index, tokens in enumerate(  # noqa: B020 - each block's output is the next one's input
        backbone.advance(tokens, first, backbone.depth, adapter), start=first
    ):
        if index >= first_feature:
            summaries.append(backbone.layer_features(tokens))
    return torch.cat(summaries, dim=1)


def first_adapted_block(backbone: BlockwiseBackbone, settings: SGDSSettings) -> int:
    """Return the index of the first block with an adapter.

    Raises:
        ValueError: the backbone has fewer blocks than the settings want adapters or features.
    """
    for name in ("adapter_blocks", "feature_blocks"):
        if getattr(settings, name) > backbone.depth:
            raise ValueError(
                f"{name} ({getattr(settings, name)}) is above the backbone's {backbone.depth} blocks"
            )
    return backbone.depth - settings.adapter_blocks


def mask_size(backbone: BlockwiseBackbone, settings: SGDSSettings) -> int:
    """Return K, how many input activations a mask keeps; all of them where there is no mask."""
    if settings.mask == "none":
        return backbone.width
    return max(1, round(settings.density * backbone.width))


class AnswerNetwork:
    """A generation's content on the device, ready to answer.

    Args:
        backbone: the shared frozen network.
        settings: the generation's settings.
        content: its tensors.
    """

    def __init__(self, backbone: BlockwiseBackbone, settings: SGDSSettings, content: Content) -> None:
        device = backbone.device
        self.backbone = backbone
        self.settings = settings
        self.first = first_adapted_block(backbone, settings)
        self.keep = mask_size(backbone, settings)
        self.mean, self.scale = content.mean.to(device), content.scale.to(device)
        self.base_weights = content.base_weights.to(device)
        self.prototypes = content.prototypes.to(device)
        self.down, self.up = content.subspaces.effective(device, backbone.dtype)
        self.session_masks = content.subspaces.input_masks.to(device)
        self.class_masks = content.class_masks.to(device)
        self.class_subspace = content.class_subspace.to(device)
        self.subspace_mean = content.subspace_mean.to(device)
        self.subspace_scale = content.subspace_scale.to(device)
        self.subspace_head = content.subspace_head.to(device)
        self.blend = content.blend.to(device)
        self.activation_mean = content.activation_mean.to(device)
        self.activation_scale = content.activation_scale.to(device)
        self.shared = content.shared
        self.shared_adapter = None if content.shared is None else content.shared.adapter(backbone)

    def nbytes(self) -> int:
        """Return the bytes of the tensors held on the device."""
        held = [t for t in vars(self).values() if isinstance(t, Tensor)]
        held += [] if self.shared is None else self.shared.tensors().values()
        return sum(t.numel() * t.element_size() for t in held)

    def base_features(self, inputs: Tensor) -> BaseFeatures:
        """Run the frozen network, with the first session's adapters, on a batch of inputs (B, ...)."""
        return self.adapted(base_pass(self.backbone, inputs, self.settings.feature_blocks, self.first))

    def adapted(self, base: BaseFeatures) -> BaseFeatures:
        """Turn what the frozen network alone leaves behind into what `base_features` returns."""
        return adapted_base(self.backbone, base, self.settings.feature_blocks, self.shared)

    def base_scores(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return base scores (B, C) and cosines to the prototypes (B, C) of raw base features."""
        standard = (features - self.mean) / self.scale
        cosines = cosine_scores(standard, self.prototypes)
        return (
            cosines if self.settings.head == "cosine" else ridge_scores(standard, self.base_weights)
        ), cosines

    def subspace_features(self, tokens: Tensor, subspace: Tensor, column: Tensor) -> Tensor:
        """Return standardised adapted features (B, D2) of rows routed to subspaces.

        Args:
            tokens: (B, T, d).
            subspace: int64 (B,), never -1.
            column: int64 (B,), class column whose mask is used under `mask_scope` class.
        """
        masks: Tensor | None
        if self.settings.inference == "kwta":
            masks = None
        elif self.settings.inference == "none":
            masks = torch.ones_like(self.session_masks[subspace])
        elif self.settings.mask_scope == "class":
            masks = self.class_masks[column]
        else:
            masks = self.session_masks[subspace]
        adapter = RoutedAdapter(
            self.first,
            self.down,
            self.up,
            subspace,
            masks,
            self.settings.scale,
            self.keep,
            self.activation_mean,
            self.activation_scale,
            self.shared_adapter,
        )
        raw = adapted_features(self.backbone, tokens, self.settings, adapter)
        return (raw - self.subspace_mean[subspace]) / self.subspace_scale[subspace]

    def subspace_scores(self, features: Tensor) -> Tensor:
        """Return scores (B, C) of subspace features; only the routed subspace's columns mean anything."""
        if self.settings.head == "cosine":
            return cosine_scores(features, self.subspace_head[:-1].T)
        return ridge_scores(features, self.subspace_head)

    def scores(self, base: BaseFeatures) -> tuple[Tensor, Tensor]:
        """Return final scores (B, C) and the distance to the nearest prototype (B,), 0 to 2."""
        scores, cosines = self.base_scores(base.features)
        distance = 1 - cosines.max(dim=1).values
        routed = (cosines if self.settings.routing == "prototype" else scores).argmax(dim=1)
        subspace = self.class_subspace[routed]
        # A blend of 0 leaves the base scores as they are: no second pass is needed for those rows.
        wanted = subspace >= 0
        wanted &= self.blend[subspace.clamp(min=0)] > 0 if len(self.blend) else False
        rows = wanted.nonzero().squeeze(1)
        if len(rows) == 0 or base.tokens is None:
            return scores, distance
        subspace, routed = subspace[rows], routed[rows]
        own = self.subspace_scores(self.subspace_features(base.tokens[rows], subspace, routed))
        scores = scores.clone()
        scores[rows] = reranked(
            scores[rows], own, self.class_subspace == subspace[:, None], self.blend[subspace]
        )
        return scores, distance


def reranked(base: Tensor, own: Tensor, member: Tensor, blend: Tensor) -> Tensor:
    """Blend a session's own scores into the base scores of its classes; its best class stays on top.

    The winner gets exactly the highest base score, or the next number above it where a class of another
    session has that one too: the session was chosen, and a tie must not undo that.

    Args:
        base: (B, C).
        own: (B, C), scores from the routed subspace.
        member: bool (B, C), the routed session's classes.
        blend: (B,), weight of the own scores.
    """
    combined = torch.where(member, base + blend[:, None] * own, -torch.inf)
    top = base.max(dim=1, keepdim=True).values
    tied = (base.where(~member, -torch.inf) == top).any(dim=1, keepdim=True)
    top = torch.where(tied, torch.nextafter(top, torch.full_like(top, torch.inf)), top)
    # In this order the winner is at `top` without rounding.
    return torch.where(member, (combined - combined.max(dim=1, keepdim=True).values) + top, base)
