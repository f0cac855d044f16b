"""What the analytic learners share: frozen multi-layer features, exact sums, a linear head solved from them.

Nothing is trained by gradient, so nothing can be forgotten: the sums after session upon session are those
of all samples at once, in any order, and a class can be taken out of them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cl_engine import calibration
from cl_engine.backbones import BlockwiseBackbone
from cl_engine.features import BaseFeatures, Extract, base_pass, extract
from cl_engine.generation import Generation
from cl_engine.heads import PrototypeStatistics, RidgeStatistics, Standardiser
from cl_engine.heads.prototypes import cosine_scores
from cl_engine.heads.ridge import fold_of, ridge_scores
from cl_engine.heads.statistics import Statistics, read_statistics
from cl_engine.learners.base import Prediction, Progress, ProgressListener
from cl_engine.learners.certificate import certify_removal, certify_sums
from cl_engine.learners.forgetting import check_known, taken_out, without_class
from cl_engine.learners.table import check_origin, check_unchanged, class_table
from cl_engine.samples import SampleSet, SessionData
from cl_engine.shared_adapters import (
    FirstSessionSettings,
    SharedAdapters,
    adapted_base,
    kept_from_adapters,
    train_shared_adapters,
)

# Share of a session's time, for the progress bar: the frozen pass takes nearly all of it.
FEATURES_SHARE = 0.8


class AnalyticSettings(FirstSessionSettings):
    """Settings that all analytic learners have."""

    feature_blocks: int = Field(default=4, ge=1)
    """CLS token and patch mean of this many of the last blocks are the features."""
    standardise: Literal["none", "first_session"] = "first_session"
    """Scale each feature by the first session's statistics, or leave the layer-normed ones as they are."""


@dataclass(frozen=True)
class Head:
    """What an analytic generation answers with.

    Attributes:
        standardiser: of the raw features, fixed by the first session.
        weights: float32 (M + 1, C), over lifted features, intercept last.
        prototypes: float32 (C, D), unit-length means of the standardised features.
        sharpness: factor that turns scores into calibrated log-probabilities.
        distances: float32 (K,), sorted holdout distances to the nearest prototype.
        adapters: of the first session, frozen since; None where it adapted nothing.
    """

    standardiser: Standardiser
    weights: Tensor
    prototypes: Tensor
    sharpness: float
    distances: Tensor
    adapters: SharedAdapters | None

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Head:
        """Read it from a generation's tensors."""
        return cls(
            Standardiser(tensors["mean"].to(device), tensors["scale"].to(device)),
            tensors["weights"].to(device),
            tensors["prototypes"].to(device),
            float(tensors["sharpness"]),
            tensors["distances"].to(device),
            SharedAdapters.read(tensors, device),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return ({} if self.adapters is None else self.adapters.tensors()) | {
            "mean": self.standardiser.mean.cpu(),
            "scale": self.standardiser.scale.cpu(),
            # In one memory layout, so that the products are, bit for bit, those of the file read again.
            "weights": self.weights.cpu().contiguous(),
            "prototypes": self.prototypes.cpu(),
            "sharpness": torch.tensor([self.sharpness]),
            "distances": self.distances.cpu(),
        }


class AnalyticLearner:
    """A learner whose session is one frozen pass and one linear system.

    Args:
        backbone: the frozen network.
        settings: of the method.
        extract: where base features come from.
    """

    method: ClassVar[str]
    # Settings that all sessions of a stream answer with.
    fixed: ClassVar[tuple[str, ...]] = (
        "feature_blocks",
        "standardise",
        "adapt_first_session",
        "adapter_blocks",
    )

    def __init__(
        self, backbone: BlockwiseBackbone, settings: AnalyticSettings, extract: Extract = extract
    ) -> None:
        self.backbone, self.settings, self._extract = backbone, settings, extract

    def solve(self, statistics: RidgeStatistics) -> tuple[Tensor, float]:
        """Return the head's weights (M + 1, C) and the penalty that they were solved at, by cross-validation.

        Args:
            statistics: of lifted features.
        """
        strength = statistics.choose_strength()
        return statistics.solve(strength), strength

    def lift(self, standard: Tensor) -> Tensor:
        """Map standardised features (N, D) to those the head reads (N, M)."""
        return standard

    def lifted(self, dimensions: int) -> int:
        """Return M for D dimensions."""
        return dimensions

    def extra_tensors(self, dimensions: int) -> dict[str, Tensor]:
        """Return what the method stores besides its head."""
        del dimensions
        return {}

    def servable(self, generation: Generation) -> AnalyticServable:
        """Build the thing that answers requests; see `Learner.servable`."""
        return AnalyticServable(self, generation)

    def learn(
        self,
        data: SessionData,
        previous: Generation | None,
        *,
        checkpoint: Path | None = None,
        on_progress: ProgressListener | None = None,
    ) -> Generation:
        """Add the new samples to the sums and solve; takes one frozen pass, so nothing is checkpointed.

        Raises:
            UnsupportedGeneration: the previous generation cannot be built on.
            ValueError: wrong classes, or a setting that earlier sessions answer with has changed.
        """
        del checkpoint
        if previous is not None:
            check_origin(previous, self.method, self.backbone.id)
            check_unchanged(previous, self.settings, self.fixed)
        report = on_progress or (lambda _: None)
        table = class_table(previous, data)
        column_of = {entry.id: column for column, entry in enumerate(table)}
        columns = torch.tensor([column_of[int(c)] for c in data.train.labels], dtype=torch.int64)
        total = max(1, len(columns))
        base = self._extract(
            self.backbone,
            data.train,
            self.settings.feature_blocks,
            self.continue_from,
            on_batch=lambda n: report(Progress("features", FEATURES_SHARE * n / total, {"samples": n})),
        )
        if previous is None:
            adapters = self._adapters(base, columns, ~kept_from_adapters(data.train.ids), data.seed)
        else:
            adapters = SharedAdapters.read(previous.tensors, self.backbone.device)
        features = adapted_base(self.backbone, base, self.settings.feature_blocks, adapters).features
        head, statistics = self._start(previous, features, adapters)
        standard = head.standardiser(features)
        ridge = statistics.ridge.updated(self.lift(standard), columns, fold_of(data.train.ids), len(table))
        prototypes = statistics.prototypes.updated(standard, columns, len(table))
        head, strength = self._solved(head, ridge, prototypes)
        head = self._calibrated(head, data, column_of)
        report(Progress("head", 1.0))
        made = Generation(
            method=self.method,
            backbone=self.backbone.id,
            session=data.session,
            settings=self.settings.model_dump(),
            classes=table,
            tensors=head.tensors() | self.extra_tensors(features.shape[1]),
            learner_state=Statistics(ridge, prototypes).tensors(),
            evaluation={"strength": strength},
            parent=None if previous is None else previous.digest,
        )
        return replace(
            made, certificate=certify_sums(previous, made, Counter(int(c) for c in data.train.labels))
        )

    @torch.no_grad()
    def forget(self, generation: Generation, class_id: int, samples: SampleSet) -> Generation:
        """Take a class out, exactly; see `learners.forgetting`.

        Raises:
            UnsupportedGeneration: of another method or backbone, or without its learner state.
            ValueError: the class is unknown or the last one, or the samples are not all that it was
                learnt from.
        """
        check_origin(generation, self.method, self.backbone.id)
        check_unchanged(generation, self.settings, self.fixed)
        column = check_known(generation, class_id, samples)
        before = read_statistics(generation, self.backbone.device)
        head = Head.read(generation.tensors, self.backbone.device)
        features = self._features(samples, head.adapters)
        lifted = self.lift(head.standardiser(features))
        ridge, residual = taken_out(before.ridge, lifted, samples.ids, column, class_id)
        prototypes = before.prototypes.without(column)
        head, _ = self._solved(head, ridge, prototypes)
        made = without_class(
            generation,
            class_id,
            tensors=head.tensors() | self.extra_tensors(features.shape[1]),
            learner_state=Statistics(ridge, prototypes).tensors(),
            certificate={"forgotten": class_id, "residual": residual},
        )
        return replace(made, certificate={**certify_removal(generation, made), **made.certificate})

    @property
    def continue_from(self) -> int | None:
        """The block whose input tokens are needed: the first adapted one, None without adapters."""
        settings = self.settings
        return self.backbone.depth - settings.adapter_blocks if settings.adapt_first_session else None

    def _features(
        self, samples: SampleSet, adapters: SharedAdapters | None, indices: list[int] | None = None
    ) -> Tensor:
        """Return features (N, D) under the first session's adapters."""
        blocks = self.settings.feature_blocks
        base = self._extract(self.backbone, samples, blocks, self.continue_from, indices=indices)
        return adapted_base(self.backbone, base, blocks, adapters).features

    def _adapters(
        self, base: BaseFeatures, columns: Tensor, shown: Tensor, seed: int
    ) -> SharedAdapters | None:
        """Train the first session's adapters; a single class gives them nothing to tell apart."""
        if base.tokens is None or len(set(columns[shown].tolist())) < 2:
            return None
        tokens = base.tokens[shown.to(base.tokens.device)]
        return train_shared_adapters(self.backbone, tokens, columns[shown], self.settings, seed=seed)

    def _start(
        self, previous: Generation | None, features: Tensor, adapters: SharedAdapters | None
    ) -> tuple[Head, Statistics]:
        device, dimensions = self.backbone.device, features.shape[1]
        if previous is not None:
            return Head.read(previous.tensors, device), read_statistics(previous, device)
        size = self.lifted(dimensions)
        empty = RidgeStatistics.empty(size)
        ridge = replace(empty, gram=empty.gram.to(device), cross=empty.cross.to(device))
        standardiser = Standardiser.neutral(dimensions, device)
        if self.settings.standardise == "first_session":
            standardiser = Standardiser.fit(features)
        head = Head(
            standardiser,
            torch.zeros(size + 1, 0, device=device),
            torch.zeros(0, dimensions, device=device),
            calibration.DEFAULT_SHARPNESS,
            torch.zeros(0),
            adapters,
        )
        return head, Statistics(ridge, PrototypeStatistics.empty(dimensions))

    def _solved(
        self, head: Head, ridge: RidgeStatistics, prototypes: PrototypeStatistics
    ) -> tuple[Head, float]:
        weights, strength = self.solve(ridge)
        means = prototypes.prototypes().to(self.backbone.device)
        return replace(head, weights=weights.float(), prototypes=means), strength

    def _calibrated(self, head: Head, data: SessionData, column_of: Mapping[int, int]) -> Head:
        """Fit sharpness and the distance table on the holdout samples of the session's classes."""
        new = [i for i, label in enumerate(data.holdout.labels.tolist()) if label in data.new_classes]
        if not new:
            return head
        features = self._features(data.holdout, head.adapters, new)
        standard = head.standardiser(features)
        truth = torch.tensor([column_of[int(data.holdout.labels[i])] for i in new])
        scores = ridge_scores(self.lift(standard), head.weights)
        nearest = 1 - cosine_scores(standard, head.prototypes).max(dim=1).values
        return replace(
            head,
            sharpness=calibration.fit_sharpness(scores, truth),
            distances=calibration.merge_distances(head.distances, nearest),
        )


class AnalyticServable:
    """An analytic generation made ready to answer.

    Args:
        learner: knows the backbone and how features are lifted; its settings are the generation's.
        generation: what to answer with.

    Raises:
        UnsupportedGeneration: of another method or backbone.
    """

    def __init__(self, learner: AnalyticLearner, generation: Generation) -> None:
        check_origin(generation, learner.method, learner.backbone.id)
        self._backbone, self._lift = learner.backbone, learner.lift
        self._blocks, self._continue_from = learner.settings.feature_blocks, learner.continue_from
        self.digest = generation.digest
        self.class_ids = generation.class_ids
        self.labels: Mapping[int, str] = {entry.id: entry.label for entry in generation.classes}
        self._head = Head.read(generation.tensors, self._backbone.device)
        self._nbytes = sum(t.numel() * t.element_size() for t in generation.tensors.values())

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Decode one payload to one input row; raises `InputError`."""
        return self._backbone.decode(payload, content_type)

    def nbytes(self) -> int:
        """Bytes held on the device beyond the shared backbone."""
        return self._nbytes

    @torch.inference_mode()
    def predict(self, inputs: Tensor) -> Prediction:
        """Classify a batch of inputs (B, ...); see `Servable.predict`."""
        return self.predict_from(base_pass(self._backbone, inputs, self._blocks, self._continue_from))

    @torch.inference_mode()
    def predict_from(self, base: BaseFeatures) -> Prediction:
        """Classify from the frozen pass alone, of at least this generation's blocks, the last ones last."""
        head = self._head
        base = adapted_base(self._backbone, base, self._blocks, head.adapters)
        standard = head.standardiser(base.features[:, -len(head.standardiser.mean) :])
        scores = ridge_scores(self._lift(standard), head.weights)
        nearest = 1 - cosine_scores(standard, head.prototypes).max(dim=1).values
        return Prediction(
            scores=torch.softmax(scores * head.sharpness, dim=1).cpu(),
            class_ids=torch.tensor(self.class_ids)[scores.argmax(dim=1).cpu()],
            unknown=calibration.unknown_score(nearest, head.distances).cpu(),
        )
