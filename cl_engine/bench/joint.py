"""Joint training, the upper bound: the same adapters and the same head, with all data of all sessions.

The adapters are trained on every class so far at once, and a ridge over the multi-layer features that
they change is fitted on the same samples; its strength, and how far to go from the frozen network to the
trained one, are chosen on the holdout. It needs what a stream has long forgotten, so it is no method of the
daemon.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from cl_engine.backbones import BlockwiseBackbone
from cl_engine.features import BaseFeatures, Extract
from cl_engine.heads import RidgeStatistics, Standardiser
from cl_engine.heads.ridge import STRENGTHS, fold_of, ridge_scores
from cl_engine.learners.fine_tuning import FineTuningLearner, FineTuningSettings
from cl_engine.samples import SessionData
from cl_engine.shared_adapters import SharedAdapters, adapted_base

# Decades from 1 to 10^7: the accuracy is flat around its best.
TRIED = STRENGTHS[4::2]


class JointSettings(FineTuningSettings):
    """Settings of joint training."""

    feature_blocks: int = Field(default=4, ge=1)
    """CLS token and patch mean of this many of the last blocks are the features."""
    scales: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.125, 0.25, 0.5, 1.0), min_length=1
    )
    """Factors for the output of the trained adapters, of which the best on the holdout is taken: as with
    first-session adapters, a step of the way from the frozen network is often better than all of it."""


class JointModel:
    """Jointly trained adapters and their ridge head.

    Args:
        backbone: the frozen network.
        settings: it was trained with.
        adapters: what was trained.
        class_ids: in the order of the head's columns.
    """

    def __init__(
        self,
        backbone: BlockwiseBackbone,
        settings: JointSettings,
        adapters: SharedAdapters,
        class_ids: tuple[int, ...],
    ) -> None:
        self._backbone, self._settings = backbone, settings
        self._trained = self._adapters = adapters
        self._class_ids = torch.tensor(class_ids)
        self._standardiser = Standardiser(torch.zeros(1), torch.ones(1))
        self._weights = torch.zeros(0)

    def nbytes(self) -> int:
        """Return the bytes of adapters, standardisation and head."""
        head = (self._standardiser.mean, self._standardiser.scale, self._weights)
        adapters = (self._adapters.down, self._adapters.up)
        return sum(t.numel() * t.element_size() for t in (*adapters, *head))

    def predict(self, base: BaseFeatures) -> Tensor:
        """Return class ids, int64 (B,)."""
        scores = ridge_scores(self._standardiser(self._features(base, self._adapters)), self._weights)
        return self._class_ids[scores.argmax(dim=1).cpu()]

    def fit_head(self, train: BaseFeatures, data: SessionData, held: BaseFeatures) -> None:
        """Fit the ridge on the training samples, at the scale and strength that are best on the holdout."""
        columns = torch.searchsorted(self._class_ids, data.train.labels)
        truth = torch.searchsorted(self._class_ids, data.holdout.labels)
        folds, best = fold_of(data.train.ids), -1
        for scale in self._settings.scales:
            adapters = self._trained.scaled(scale)
            features = self._features(train, adapters)
            standardiser = Standardiser.fit(features)
            statistics = RidgeStatistics.empty(features.shape[1]).updated(
                standardiser(features).cpu(), columns, folds, len(self._class_ids)
            )
            judged = standardiser(self._features(held, adapters))
            for strength in TRIED:
                weights = statistics.solve(strength).float().to(features.device)
                right = int((ridge_scores(judged, weights).argmax(dim=1).cpu() == truth).sum())
                if right > best:
                    best, self._weights = right, weights
                    self._adapters, self._standardiser = adapters, standardiser

    def _features(self, base: BaseFeatures, adapters: SharedAdapters) -> Tensor:
        """Return the multi-layer features (N, D) under adapters."""
        return adapted_base(self._backbone, base, self._settings.feature_blocks, adapters).features


def train_jointly(
    backbone: BlockwiseBackbone, data: SessionData, settings: JointSettings, extract: Extract
) -> JointModel:
    """Train on everything at once.

    Args:
        backbone: the frozen network.
        data: every sample of every class so far, all classes new; the holdout of the same classes.
        settings: of the adapters.
        extract: where base features come from.

    Raises:
        Diverged: the loss is no longer finite.
        ValueError: the backbone has fewer blocks than the settings want adapters.
    """
    only_training = FineTuningSettings(**settings.model_dump(exclude={"feature_blocks", "scales"}))
    trained = FineTuningLearner(backbone, only_training, extract).learn(data, None)
    down, up = (trained.tensors[name].to(backbone.device) for name in ("down", "up"))
    model = JointModel(backbone, settings, SharedAdapters(down, up), trained.class_ids)
    first = backbone.depth - settings.adapter_blocks
    train, held = (
        extract(backbone, samples, settings.feature_blocks, first) for samples in (data.train, data.holdout)
    )
    model.fit_head(train, data, held)
    return model
