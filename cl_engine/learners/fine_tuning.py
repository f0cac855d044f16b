"""Naive fine-tuning, the lower bound: shared adapters and a shared head, trained on each session alone.

The same adapters in the same blocks as SGDS, without masks and without anyone owning units, and a
linear head over all classes. Every session overwrites what the earlier ones needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from cl_engine.backbones import BlockwiseBackbone
from cl_engine.errors import Diverged
from cl_engine.features import BaseFeatures, Extract, base_pass, extract
from cl_engine.generation import Generation
from cl_engine.learners.base import Prediction, Progress, ProgressListener
from cl_engine.learners.table import check_origin, check_unchanged, class_table
from cl_engine.learning_rate import set_cosine_rate
from cl_engine.samples import SessionData
from cl_engine.shared_adapters import SharedAdapters

METHOD = "finetune"


class FineTuningSettings(BaseModel):
    """Settings of naive fine-tuning."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    adapter_blocks: int = Field(default=6, ge=1)
    """Adapters sit in parallel with the MLP of this many of the last blocks."""
    units: int = Field(default=16, ge=1)
    """Bottleneck units of each adapter, shared by all sessions."""
    epochs: int = Field(default=6, ge=1)
    """Epochs per session."""
    batch_size: int = Field(default=32, ge=1)
    """Samples per step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak rate of AdamW, cosine decay."""


class FineTuningLearner:
    """Learner of the method `finetune`."""

    method = METHOD

    def __init__(
        self,
        backbone: BlockwiseBackbone,
        settings: FineTuningSettings | None = None,
        extract: Extract = extract,
    ) -> None:
        self.backbone, self._extract = backbone, extract
        self.settings = settings or FineTuningSettings()
        if self.settings.adapter_blocks > backbone.depth:
            raise ValueError(
                f"adapter_blocks ({self.settings.adapter_blocks}) is above the backbone's "
                f"{backbone.depth} blocks"
            )

    def servable(self, generation: Generation) -> FineTuningServable:
        """Build the thing that answers requests; see `Learner.servable`."""
        return FineTuningServable(self.backbone, generation)

    def learn(
        self,
        data: SessionData,
        previous: Generation | None,
        *,
        checkpoint: Path | None = None,
        on_progress: ProgressListener | None = None,
    ) -> Generation:
        """Go on training everything on the new samples; a baseline of seconds, so never checkpointed.

        Raises:
            Diverged: the loss is no longer finite.
            UnsupportedGeneration: the previous generation is of another method or backbone.
            ValueError: wrong classes, or adapters of another shape than the previous generation's.
        """
        del checkpoint
        if previous is not None:
            check_origin(previous, METHOD, self.backbone.id)
            check_unchanged(previous, self.settings, ("adapter_blocks", "units"))
        report = on_progress or (lambda _: None)
        settings, backbone = self.settings, self.backbone
        table = class_table(previous, data)
        first = backbone.depth - settings.adapter_blocks
        tokens = self._extract(backbone, data.train, 1, first).tokens
        assert tokens is not None
        column_of = {entry.id: column for column, entry in enumerate(table)}
        columns = torch.tensor([column_of[int(c)] for c in data.train.labels], device=backbone.device)
        draw = torch.Generator().manual_seed(data.seed * 7_919 + data.session)
        weights = self._start(previous, len(table), draw)
        parameters = [w.requires_grad_(True) for w in weights.values()]
        optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate)
        for epoch in range(settings.epochs):
            order = torch.randperm(len(columns), generator=draw).to(backbone.device)
            batches = torch.split(order, settings.batch_size)
            for step, rows in enumerate(batches):
                done = (epoch + step / len(batches)) / settings.epochs
                set_cosine_rate(optimiser, settings.learning_rate, done)
                loss = cross_entropy(logits(backbone, tokens[rows], first, weights), columns[rows])
                if not math.isfinite(float(loss.detach())):
                    raise Diverged(
                        f"the loss is {float(loss.detach())} in epoch {epoch}: lower learning_rate"
                    )
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            report(Progress("weights", (epoch + 1) / settings.epochs, {"epoch": epoch + 1}))
        return Generation(
            method=METHOD,
            backbone=backbone.id,
            session=data.session,
            settings=settings.model_dump(),
            classes=table,
            tensors={name: w.detach().cpu() for name, w in weights.items()},
            certificate={"promise": "none: this baseline protects nothing", "holds": True},
            parent=None if previous is None else previous.digest,
        )

    def _start(self, previous: Generation | None, classes: int, draw: torch.Generator) -> dict[str, Tensor]:
        """Take over the previous weights, with zero rows for new classes."""
        layers, units, width = self.settings.adapter_blocks, self.settings.units, self.backbone.width
        bound = math.sqrt(3.0 / width)
        down = torch.empty(layers, units, width).uniform_(-bound, bound, generator=draw)
        start = {
            "down": down,
            "up": torch.zeros(layers, width, units),
            "head": torch.zeros(classes, 2 * width),
            "bias": torch.zeros(classes),
        }
        if previous is not None:
            start["down"], start["up"] = previous.tensors["down"].clone(), previous.tensors["up"].clone()
            known = len(previous.tensors["bias"])
            start["head"][:known] = previous.tensors["head"]
            start["bias"][:known] = previous.tensors["bias"]
        return {name: tensor.to(self.backbone.device) for name, tensor in start.items()}


def logits(backbone: BlockwiseBackbone, tokens: Tensor, first: int, weights: Mapping[str, Tensor]) -> Tensor:
    """Return logits (B, C) from the tokens (B, T, d) that enter the first adapted block."""
    adapter = SharedAdapters(weights["down"], weights["up"]).adapter(backbone)
    features = backbone.layer_features(backbone.last(tokens, first, adapter))
    return features @ weights["head"].T + weights["bias"]


class FineTuningServable:
    """A fine-tuned generation made ready to answer."""

    def __init__(self, backbone: BlockwiseBackbone, generation: Generation) -> None:
        check_origin(generation, METHOD, backbone.id)
        self._backbone = backbone
        self.digest = generation.digest
        self.class_ids = generation.class_ids
        self.labels: Mapping[int, str] = {entry.id: entry.label for entry in generation.classes}
        settings = FineTuningSettings(**generation.settings)
        self._first = backbone.depth - settings.adapter_blocks
        self._weights = {name: tensor.to(backbone.device) for name, tensor in generation.tensors.items()}

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Decode one payload to one input row; raises `InputError`."""
        return self._backbone.decode(payload, content_type)

    def nbytes(self) -> int:
        """Bytes held on the device beyond the shared backbone."""
        return sum(t.numel() * t.element_size() for t in self._weights.values())

    @torch.inference_mode()
    def predict(self, inputs: Tensor) -> Prediction:
        """Classify a batch of inputs (B, ...); see `Servable.predict`."""
        return self.predict_from(base_pass(self._backbone, inputs, 1, self._first))

    @torch.inference_mode()
    def predict_from(self, base: BaseFeatures) -> Prediction:
        """Classify from the tokens of the frozen pass; the unknown score is 1 minus the confidence."""
        assert base.tokens is not None
        scores = torch.softmax(logits(self._backbone, base.tokens, self._first, self._weights), dim=1).cpu()
        best = scores.max(dim=1)
        return Prediction(scores, torch.tensor(self.class_ids)[best.indices], 1 - best.values)
