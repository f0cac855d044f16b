"""Adapters that every sample passes alike.

First-session adaptation trains them on the classes of the first session and freezes them for ever, so that
the network under every later session is a better one that nothing can forget (APER, Zhou et al. 2023;
RanPAC, McDonnell et al. 2023). Joint training uses the same adapters as the upper bound.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from cl_engine.backbones.blockwise import BlockAdapter, BlockwiseBackbone, feature_width
from cl_engine.errors import Diverged
from cl_engine.features import BaseFeatures
from cl_engine.learning_rate import set_cosine_rate

MAX_GRADIENT_NORM = 1.0
# Samples per step, and per batch where nothing is trained.
TRAINING_BATCH, INFERENCE_BATCH = 32, 64
KEPT_SHARE = 0.2
PREFIX = "first_session."


class FirstSessionSettings(BaseModel):
    """How the first session adapts the network for all later ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    adapt_first_session: bool = False
    """Train adapters on the first session's classes, freeze them for ever, go half the way from the frozen
    network to the trained one, and read the mean of the frozen and the adapted features. The ridge's A_T on
    images held out from training, for the frozen network, this, and with `first_session_scale` at 1:
    CIFAR-10 at 56 px (40 images a class, two classes a session, three class orders) 0.715, 0.763 and 0.728;
    60 classes of QuickDraw-345 (56 px, 20 a class, six a session, three orders) 0.395, 0.412 and 0.424;
    CIFAR-10 at 112 px (four orders) 0.920, 0.923 and, on three, 0.916. Without the frozen features at a scale
    of 1: 0.687, 0.407 and 0.834. Off by default: it pays where the frozen network is weak, and an answer
    takes a second pass over the adapted blocks."""
    adapter_blocks: int = Field(default=6, ge=1)
    """Adapters sit in parallel with the MLP of this many of the last blocks."""
    first_session_units: int = Field(default=16, ge=1)
    """Bottleneck units of each of these adapters."""
    first_session_epochs: int = Field(default=10, ge=1)
    """Epochs they are trained for."""
    first_session_learning_rate: float = Field(default=1e-3, gt=0)
    """Peak rate of AdamW; cosine decay to zero."""
    first_session_scale: float = Field(default=0.5, gt=0, le=1)
    """What the adapters' output is multiplied by once they are trained: a step of the way from the frozen
    network to the trained one, as robust fine-tuning takes it between weights (Wortsman et al., CVPR 2022);
    1 leaves them as trained. A quarter of the way without frozen features does nearly as well: 0.757, 0.405
    and 0.923 on the streams above. `tests.benchmarks.held_out_settings` (three orders, other held-out images)
    has, for the frozen network, this and that, 0.731, 0.744 and 0.753 on CIFAR-10 at 56 px, and 0.432, 0.441
    and 0.433 on 60 classes of QuickDraw, fifteen a session."""
    first_session_share: float = Field(default=0.5, gt=0, le=1)
    """Weight of the adapted features in their mean with the frozen ones; 1 leaves the frozen ones out."""


@dataclass(frozen=True)
class SharedAdapters:
    """One adapter in parallel with the MLP of each of the last L blocks.

    Attributes:
        down: float32 (L, r, d).
        up: float32 (L, d, r).
        share: weight of the adapted features in their mean with the frozen ones, above 0 and at most 1.
    """

    down: Tensor
    up: Tensor
    share: float = 1.0

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], device: torch.device) -> SharedAdapters | None:
        """Read them from a generation's tensors; None where its first session adapted nothing."""
        if f"{PREFIX}down" not in tensors:
            return None
        share = tensors.get(f"{PREFIX}share")
        return cls(
            tensors[f"{PREFIX}down"].to(device),
            tensors[f"{PREFIX}up"].to(device),
            1.0 if share is None else float(share),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {
            f"{PREFIX}down": self.down.cpu(),
            f"{PREFIX}up": self.up.cpu(),
            f"{PREFIX}share": torch.tensor([self.share], dtype=torch.float64),
        }

    def scaled(self, factor: float) -> SharedAdapters:
        """Return them with their output multiplied by a factor."""
        return replace(self, up=self.up * factor)

    def adapter(self, backbone: BlockwiseBackbone) -> BlockAdapter:
        """Return what `BlockwiseBackbone.advance` calls from the first adapted block on."""
        first = backbone.depth - len(self.down)
        down, up = (w.to(backbone.device, backbone.dtype) for w in (self.down, self.up))

        def adapter(index: int, inputs: Tensor) -> Tensor:
            layer = index - first
            return torch.relu(inputs @ down[layer].T) @ up[layer].T

        return adapter


def kept_from_adapters(ids: Sequence[str], share: float = KEPT_SHARE) -> Tensor:
    """Say which of a session's samples its adapters never see, bool (N,), by a hash of their ids.

    The features of samples that adapters were trained on are better than those to come; a ridge fitted on
    them alone expects too much. On held-out images (see `adapt_first_session`) keeping a fifth for the ridge
    took its A_T from 0.504 to 0.512 and, with another fifth, to 0.521.

    Args:
        ids: of the samples.
        share: how many are kept, 0 to 1.
    """
    hashed = [zlib.crc32(b"kept from adapters\0" + i.encode()) / 2**32 for i in ids]
    return torch.tensor(hashed) < share


@torch.no_grad()
def adapted_base(
    backbone: BlockwiseBackbone, base: BaseFeatures, feature_blocks: int, adapters: SharedAdapters | None
) -> BaseFeatures:
    """Return the mean of frozen features and those under shared adapters; the tokens to continue from stay.

    Args:
        backbone: the frozen network.
        base: its frozen pass, with the tokens that enter the first adapted block.
        feature_blocks: how many of the last blocks are summarised.
        adapters: None leaves the features as they are.
    """
    if adapters is None or not len(base.features):
        return base
    assert base.tokens is not None
    first = backbone.depth - len(adapters.down)
    wanted = backbone.depth - feature_blocks
    adapter = adapters.adapter(backbone)
    # Blocks in front of the first adapter come out as the frozen network has them.
    whole = feature_width(backbone, feature_blocks)
    adapted = feature_width(backbone, min(backbone.depth - first, feature_blocks))
    features = base.features[:, -whole:]
    untouched, frozen = features[:, : whole - adapted], features[:, whole - adapted :]
    parts = []
    for tokens in torch.split(base.tokens, INFERENCE_BATCH):
        outputs = enumerate(backbone.advance(tokens, first, backbone.depth, adapter), start=first)
        parts.append(torch.cat([backbone.layer_features(t) for i, t in outputs if i >= wanted], dim=1))
    # Exact at a share of 1.
    mean = torch.lerp(frozen, torch.cat(parts), adapters.share)
    return BaseFeatures(torch.cat([untouched, mean], dim=1), base.tokens)


def train_shared_adapters(
    backbone: BlockwiseBackbone,
    tokens: Tensor,
    columns: Tensor,
    settings: FirstSessionSettings,
    *,
    seed: int,
) -> SharedAdapters:
    """Train adapters from zero output under a throw-away linear head on the last block, then scale them.

    Args:
        backbone: the frozen network.
        tokens: input of the first adapted block, (N, T, d).
        columns: class of each sample, 0 to C - 1, int64 (N,).
        settings: units, epochs, rate and place.
        seed: everything random derives from it.

    Raises:
        Diverged: the loss is no longer finite.
    """
    layers, units, width = settings.adapter_blocks, settings.first_session_units, backbone.width
    first, device = backbone.depth - layers, backbone.device
    draw = torch.Generator().manual_seed(seed)
    bound = math.sqrt(3.0 / width)
    down = torch.empty(layers, units, width).uniform_(-bound, bound, generator=draw).to(device)
    # Zero output weights: training starts at the frozen network, as LoRA does.
    adapters = SharedAdapters(
        down.requires_grad_(True), torch.zeros(layers, width, units, device=device).requires_grad_(True)
    )
    classes = int(columns.max()) + 1
    head = torch.zeros(2 * width, classes, device=device, requires_grad=True)
    bias = torch.zeros(classes, device=device, requires_grad=True)
    parameters = [adapters.down, adapters.up, head, bias]
    optimiser = torch.optim.AdamW(parameters, lr=settings.first_session_learning_rate)
    for epoch in range(settings.first_session_epochs):
        batches = torch.split(torch.randperm(len(columns), generator=draw), TRAINING_BATCH)
        for step, rows in enumerate(batches):
            done = (epoch + step / len(batches)) / settings.first_session_epochs
            set_cosine_rate(optimiser, settings.first_session_learning_rate, done)
            output = backbone.last(tokens[rows.to(device)], first, adapters.adapter(backbone))
            logits = backbone.layer_features(output) @ head + bias
            loss = cross_entropy(logits, columns[rows].to(device))
            value = float(loss.detach())
            if not math.isfinite(value):
                raise Diverged(
                    f"the loss is {value} in epoch {epoch} of the first session's adaptation: lower "
                    "first_session_learning_rate"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
            optimiser.step()
    trained = SharedAdapters(adapters.down.detach(), adapters.up.detach(), settings.first_session_share)
    return trained.scaled(settings.first_session_scale)
