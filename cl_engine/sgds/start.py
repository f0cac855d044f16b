"""What a stream's first session fixes for all later ones, before it learns anything of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_engine import calibration
from cl_engine.backbones import BlockwiseBackbone
from cl_engine.backbones.blockwise import BlockAdapter
from cl_engine.features import BaseFeatures
from cl_engine.heads import Standardiser
from cl_engine.sgds.adapter import Subspaces
from cl_engine.sgds.content import Content
from cl_engine.sgds.settings import SGDSSettings
from cl_engine.shared_adapters import SharedAdapters, train_shared_adapters


def first_session_adapters(
    backbone: BlockwiseBackbone, settings: SGDSSettings, tokens: Tensor, columns: Tensor, seed: int
) -> SharedAdapters | None:
    """Train the adapters under every session, if the settings want them.

    They take seconds and no checkpoint: a session that is run again trains the same ones again.

    Args:
        backbone: the frozen network.
        settings: of the learner.
        tokens: input of the first adapted block, (N, T, d).
        columns: class of each sample, int64 (N,); a single class gives the adapters nothing to tell apart.
        seed: of the session.

    Raises:
        Diverged: the loss is no longer finite.
    """
    if not settings.adapt_first_session or len(set(columns.tolist())) < 2:
        return None
    return train_shared_adapters(backbone, tokens, columns, settings, seed=seed)


def empty_content(
    backbone: BlockwiseBackbone, settings: SGDSSettings, base: BaseFeatures, shared: SharedAdapters | None
) -> Content:
    """Return the content without any class.

    Args:
        backbone: the frozen network.
        settings: of the learner.
        base: of the first session's samples, under the shared adapters.
        shared: the first session's adapters.
    """
    width, layers, dimensions = backbone.width, settings.adapter_blocks, base.features.shape[1]
    standardiser = Standardiser.neutral(dimensions, base.features.device)
    if settings.standardise == "first_session":
        standardiser = Standardiser.fit(base.features)
    adapted = 2 * width * min(settings.adapter_blocks, settings.feature_blocks)
    assert base.tokens is not None
    adapter = None if shared is None else shared.adapter(backbone)
    mean, scale = activation_statistics(backbone, settings, base.tokens, adapter)
    return Content(
        mean=standardiser.mean.cpu(),
        scale=standardiser.scale.cpu(),
        base_weights=torch.zeros(dimensions + 1, 0),
        prototypes=torch.zeros(0, dimensions),
        subspaces=Subspaces.none(layers, settings.units_per_session, width),
        class_masks=torch.zeros(0, layers, width, dtype=torch.bool),
        class_subspace=torch.zeros(0, dtype=torch.int64),
        subspace_mean=torch.zeros(0, adapted),
        subspace_scale=torch.zeros(0, adapted),
        subspace_head=torch.zeros(adapted + 1, 0),
        blend=torch.zeros(0),
        activation_mean=mean,
        activation_scale=scale,
        sharpness=torch.tensor([calibration.DEFAULT_SHARPNESS]),
        distances=torch.zeros(0),
        shared=shared,
    )


@torch.no_grad()
def activation_statistics(
    backbone: BlockwiseBackbone, settings: SGDSSettings, tokens: Tensor, shared: BlockAdapter | None
) -> tuple[Tensor, Tensor]:
    """Return mean and spread of the adapter inputs' token means without any session's units, (L, d) each.

    Args:
        backbone: the frozen network.
        settings: of the learner.
        tokens: input of the first adapted block, (N, T, d).
        shared: the first session's adapters, None for none.
    """
    seen: list[list[Tensor]] = [[] for _ in range(settings.adapter_blocks)]
    first = backbone.depth - settings.adapter_blocks

    def record(index: int, inputs: Tensor) -> Tensor:
        seen[index - first].append(inputs.float().mean(dim=1))
        return torch.zeros_like(inputs) if shared is None else shared(index, inputs)

    for batch in torch.split(tokens, settings.batch_size):
        for _ in backbone.advance(batch, first, backbone.depth, record):
            pass
    layers = [Standardiser.fit(torch.cat(layer)) for layer in seen]
    return torch.stack([s.mean for s in layers]).cpu(), torch.stack([s.scale for s in layers]).cpu()
