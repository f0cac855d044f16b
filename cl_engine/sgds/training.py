"""The two phases that train one session's bottleneck units.

Nothing but the session's own units and a throw-away cosine classifier is trained; the backbone, every
other session's units and all heads are constants here. Each epoch draws from a random generator of its
own, seeded by session and epoch, so a session resumed from a checkpoint goes on exactly as it would
have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cl_engine.backbones import BlockwiseBackbone
from cl_engine.backbones.blockwise import BlockAdapter
from cl_engine.checkpoint import Checkpoint
from cl_engine.errors import Diverged
from cl_engine.learning_rate import set_cosine_rate
from cl_engine.sgds.adapter import adapt
from cl_engine.sgds.answer import first_adapted_block, mask_size
from cl_engine.sgds.exploration import count_active, top_k_mask, z_scores
from cl_engine.sgds.settings import SGDSSettings

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class TrainingInput:
    """What the two phases work on.

    Attributes:
        tokens: input of the first adapted block, (N, T, d).
        rows: class row of each sample, int64 (N,); the session's classes come first, those of replayed
            exemplars after them.
        probabilities: keep probabilities of phase 1, float32 (C_new, L, d).
        shared: the first session's adapters, under the units; None for none.
        start: units to go on from, (L, r, d) and (L, d, r), None for new ones.
        borrowed_down, borrowed_up: frozen units fed forward too, (L, r, d) and (L, d, r), or None.
        activation_mean, activation_scale: (L, d), of the frozen network's adapter inputs.
        seed: of this session.
    """

    tokens: Tensor
    rows: Tensor
    probabilities: Tensor
    shared: BlockAdapter | None
    start: tuple[Tensor, Tensor] | None
    borrowed_down: Tensor | None
    borrowed_up: Tensor | None
    activation_mean: Tensor
    activation_scale: Tensor
    seed: int


@dataclass(frozen=True)
class TrainedUnits:
    """What a session has learnt.

    Attributes:
        down, up: (L, r, d) and (L, d, r), float32.
        counters: float32 (C_new, L, d).
        class_masks: bool (C_new, L, d), top-K of each class's counters.
        session_mask: bool (L, d), top-K of the summed counters.
    """

    down: Tensor
    up: Tensor
    counters: Tensor
    class_masks: Tensor
    session_mask: Tensor


class UnitTrainer:
    """Trains one session's units, an epoch at a time.

    Args:
        backbone: the frozen network.
        settings: of the learner.
        data: tokens, classes and the outcome of the semantic strategy.
    """

    def __init__(self, backbone: BlockwiseBackbone, settings: SGDSSettings, data: TrainingInput) -> None:
        self.backbone, self.settings, self.data = backbone, settings, data
        self.first = first_adapted_block(backbone, settings)
        self.keep = mask_size(backbone, settings)
        self.classes = data.probabilities.shape[0]
        # A replayed sample passes the mask of one of the session's classes: of none it can be told by it.
        self.mask_rows = torch.where(
            data.rows < self.classes, data.rows, torch.arange(len(data.rows)) % self.classes
        )
        self.epochs = settings.explore_epochs + settings.compact_epochs
        self.epoch = 0
        layers, units, width = settings.adapter_blocks, settings.units_per_session, backbone.width
        device = backbone.device
        draw = self._random(epoch=-1)
        bound = math.sqrt(3.0 / width)
        down = torch.empty(layers, units, width).uniform_(-bound, bound, generator=draw)
        # Zero output weights: training starts at the frozen network, as LoRA does.
        down, up = (down, torch.zeros(layers, width, units)) if data.start is None else data.start
        self.down = down.clone().to(device).requires_grad_(True)
        self.up = up.clone().to(device).requires_grad_(True)
        self.counters = torch.zeros(self.classes, layers, width, device=device)
        first_feature = max(self.first, backbone.depth - settings.feature_blocks)
        self.feature_range = range(first_feature, backbone.depth)
        self.centre, self.classifier = self._start_classifier()
        self.optimiser = torch.optim.AdamW(
            [self.down, self.up, self.classifier],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )

    @property
    def finished(self) -> bool:
        """Whether all epochs of both phases are done."""
        return self.epoch >= self.epochs

    @property
    def phase(self) -> str:
        """Name of the phase that the next epoch belongs to."""
        return "explore" if self.epoch < self.settings.explore_epochs else "compact"

    def run_epoch(self, on_step: Callable[[float], None] | None = None) -> float:
        """Train one epoch and return its mean loss.

        Args:
            on_step: called with the finished share of the epoch after each step.

        Raises:
            Diverged: the loss is no longer finite.
        """
        exploring = self.phase == "explore"
        draw = self._random(self.epoch)
        count = len(self.data.rows)
        order = torch.randperm(count, generator=draw)
        steps = math.ceil(count / self.settings.batch_size)
        compact = None if exploring else self._compact_masks()
        total = 0.0
        for step in range(steps):
            rows = order[step * self.settings.batch_size : (step + 1) * self.settings.batch_size]
            classes = self.data.rows[rows]
            if compact is None:
                chance = self.data.probabilities[self.mask_rows[rows]]
                masks = torch.rand(chance.shape, generator=draw) < chance
            else:
                masks = compact[self.mask_rows[rows]]
            total += self._step(rows, classes, masks, step, steps) * len(rows)
            if on_step is not None:
                on_step((step + 1) / steps)
        self.epoch += 1
        return total / max(count, 1)

    def result(self) -> TrainedUnits:
        """Return the trained units and the masks the counters give."""
        counters = self.counters.cpu()
        return TrainedUnits(
            self.down.detach().cpu(),
            self.up.detach().cpu(),
            counters,
            *self._masks(),
        )

    def checkpoint(self) -> Checkpoint:
        """Return everything that `restore` needs to go on from here."""
        tensors = {"down": self.down, "up": self.up, "classifier": self.classifier, "counters": self.counters}
        for index, state in self.optimiser.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value)
        return Checkpoint(tensors, {"epoch": self.epoch})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint of the same session."""
        tensors = dict(checkpoint.tensors)
        with torch.no_grad():
            for name in ("down", "up", "classifier", "counters"):
                getattr(self, name).copy_(tensors.pop(name))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            _, index, field = name.split(".")
            state.setdefault(int(index), {})[field] = value
        self.optimiser.load_state_dict(
            {"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]}
        )
        self.epoch = int(checkpoint.facts["epoch"])

    def _step(self, rows: Tensor, classes: Tensor, masks: Tensor, step: int, steps: int) -> float:
        done = (self.epoch + step / steps) / self.epochs
        set_cosine_rate(self.optimiser, self.settings.learning_rate, done)
        device = self.backbone.device
        features = self._forward(rows.to(self.data.tokens.device), masks.to(device), classes)
        cosines = normalize(features - self.centre, dim=1) @ normalize(self.classifier, dim=1).T
        loss = cross_entropy(self.settings.logit_scale * cosines, classes.to(device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value} in epoch {self.epoch}: lower learning_rate or scale")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([self.down, self.up, self.classifier], MAX_GRADIENT_NORM)
        self.optimiser.step()
        return value

    def _forward(self, rows: Tensor, masks: Tensor | None, classes: Tensor | None) -> Tensor:
        """Return adapted features; with masks None those without any session's units."""
        dtype = self.backbone.dtype
        down, up = self._effective(dtype)

        def adapter(index: int, inputs: Tensor) -> Tensor:
            assert masks is not None
            assert classes is not None
            layer = index - self.first
            mask = masks[:, layer]
            if self.phase == "explore":
                spread = z_scores(
                    inputs.detach(), self.data.activation_mean[layer], self.data.activation_scale[layer]
                )
                own = (classes < self.classes).to(mask.device)
                count_active(self.counters[:, layer], spread[own], mask[own], classes[own.cpu()], self.keep)
            size = (len(inputs), -1, -1)
            change = adapt(
                inputs, mask, down[layer].expand(size), up[layer].expand(size), self.settings.scale
            )
            return change if self.data.shared is None else change + self.data.shared(index, inputs)

        tokens, summaries = self.data.tokens[rows], []
        blocks = self.backbone.advance(
            tokens, self.first, self.backbone.depth, adapter if masks is not None else self.data.shared
        )
        for index, tokens in enumerate(blocks, start=self.first):
            if index in self.feature_range:
                summaries.append(self.backbone.layer_features(tokens))
        return torch.cat(summaries, dim=1)

    def _effective(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        down, up = self.down, self.up
        if self.data.borrowed_down is not None and self.data.borrowed_up is not None:
            down = torch.cat([down, self.data.borrowed_down], dim=1)
            up = torch.cat([up, self.data.borrowed_up], dim=2)
        return down.to(dtype), up.to(dtype)

    def _masks(self) -> tuple[Tensor, Tensor]:
        """Return the classes' masks and the session's, bool (C_new, L, d) and (L, d)."""
        counters = self.counters.cpu()
        if self.settings.mask == "random":
            counters = torch.rand(counters.shape, generator=self._random(epoch=-2))
        return top_k_mask(counters, self.keep), top_k_mask(counters.sum(dim=0), self.keep)

    def _compact_masks(self) -> Tensor:
        classes, session = self._masks()
        return classes if self.settings.mask_scope == "class" else session.expand(self.classes, -1, -1)

    @torch.no_grad()
    def _start_classifier(self) -> tuple[Tensor, Tensor]:
        """Start the cosine classifier at the class means of the frozen features."""
        batches = torch.split(torch.arange(len(self.data.rows)), self.settings.batch_size)
        features = torch.cat([self._forward(rows, None, None) for rows in batches])
        centre = features.mean(dim=0)
        classes = max(self.classes, int(self.data.rows.max()) + 1 if len(self.data.rows) else 0)
        sums = torch.zeros(classes, features.shape[1], device=features.device)
        sums.index_add_(0, self.data.rows.to(features.device), normalize(features - centre, dim=1))
        # A class without a sample (all in validation) starts at a neutral direction, not at zero.
        return centre, (normalize(sums, dim=1) + 1e-6).requires_grad_(True)

    def _random(self, epoch: int) -> torch.Generator:
        # 1,000,003 is prime: no two (seed, epoch) pairs of a realistic run meet.
        return torch.Generator().manual_seed(self.data.seed * 1_000_003 + epoch + 1)
