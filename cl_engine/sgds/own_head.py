"""A session's own head: fitted on its adapted features, and weighed against the base head by validation.

It only puts the session's classes in another order. With exemplars it is also fitted to answer zero for
samples of earlier sessions, but its scores are still not added to those of other sessions' classes: it has
never seen a later session's sample. Tried on held-out CIFAR-10 images (28 px, 60 training images and 5
exemplars a class), adding the scores of the two best sessions took A_T from 0.510 to 0.412.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cl_engine.backbones import BlockwiseBackbone
from cl_engine.features import BaseFeatures
from cl_engine.heads import PrototypeStatistics, Standardiser, fit_ridge, leave_one_out
from cl_engine.sgds.answer import AnswerNetwork
from cl_engine.sgds.content import Content
from cl_engine.sgds.exemplars import Exemplars
from cl_engine.sgds.family import subspace_features
from cl_engine.sgds.settings import SGDSSettings
from cl_engine.sgds.training import TrainedUnits

# Weights of the own scores that are tried; 0 leaves the base scores alone.
BLENDS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class OwnSamples:
    """A session's samples of its new classes.

    Attributes:
        base: features under the first session's adapters, and tokens.
        columns: class column of each, int64 (N,).
        new_columns: of the session's classes, ascending.
        unseen: bool (N,), kept from the adapters and the base head.
        replayed: exemplars of earlier classes that the units were trained with; None where none are kept.
    """

    base: BaseFeatures
    columns: Tensor
    new_columns: Tensor
    unseen: Tensor
    replayed: Exemplars | None


class OwnHead:
    """Appends one session's subspace to a content.

    Args:
        backbone: the frozen network.
        settings: of the learner.
        samples: what the session learns from.
    """

    def __init__(self, backbone: BlockwiseBackbone, settings: SGDSSettings, samples: OwnSamples) -> None:
        self.backbone, self.settings, self.samples = backbone, settings, samples

    def append(self, content: Content, units: TrainedUnits, borrowed: int | None) -> Content:
        """Append the session's units, its own head, and the blend that validation favours.

        Args:
            content: with the base head fitted without the unseen samples, and all class masks.
            units: what the session has trained.
            borrowed: subspace whose units it feeds forward too.
        """
        samples, settings = self.samples, self.settings
        number, news = len(content.subspaces), len(samples.new_columns)
        subspaces = content.subspaces.extended(units.down, units.up, borrowed, units.session_mask)
        if not settings.exclusive_units:
            subspaces = subspaces.overwritten(units.down, units.up)
        adapted = content.subspace_head.shape[0] - 1
        content = replace(
            content,
            subspaces=subspaces,
            class_subspace=torch.cat([content.class_subspace, torch.full((news,), number)]),
            subspace_mean=torch.cat([content.subspace_mean, torch.zeros(1, adapted)]),
            subspace_scale=torch.cat([content.subspace_scale, torch.ones(1, adapted)]),
            subspace_head=torch.cat([content.subspace_head, torch.zeros(adapted + 1, news)], dim=1),
            blend=torch.cat([content.blend, torch.zeros(1)]),
            joined=None if content.joined is None else torch.cat([content.joined, torch.tensor([False])]),
        )
        assert samples.base.tokens is not None
        raw = self._features(content, samples.base.tokens, samples.columns)
        columns, fitted = samples.columns, ~samples.unseen
        if samples.replayed is not None:
            more = self._features(content, samples.replayed.tokens, samples.replayed.columns)
            raw, columns = torch.cat([raw, more]), torch.cat([columns, samples.replayed.columns])
            fitted = torch.cat([fitted, torch.ones(len(more), dtype=torch.bool)])
        blend = 0.0
        # One class alone has no order to change.
        if news > 1 and bool(samples.unseen.any()) and not bool(samples.unseen.all()):
            trial = self._fitted(content, raw[fitted.to(raw.device)], columns[fitted])
            blend = self._best_blend(trial)
        content = self._fitted(content, raw, columns)
        return replace(content, blend=torch.cat([content.blend[:-1], torch.tensor([blend])]))

    def _features(self, content: Content, tokens: Tensor, columns: Tensor) -> Tensor:
        """Return features of samples in the new subspace, each under its inference mask, (N, D2)."""
        network = AnswerNetwork(self.backbone, self.settings, content)
        return subspace_features(
            network, tokens, columns, len(content.subspaces) - 1, self.settings.batch_size
        )

    def _fitted(self, content: Content, raw: Tensor, columns: Tensor) -> Content:
        """Fit the new session's standardisation and head on adapted features (N, D2)."""
        standardiser = Standardiser.fit(raw)
        features = standardiser(raw)
        member = self.samples.new_columns
        targets = (columns[:, None] == member).to(features.device).double()
        if self.settings.head == "cosine":
            own = torch.isin(columns, member)
            prototypes = PrototypeStatistics.empty(features.shape[1]).updated(
                features[own.to(features.device)], columns[own] - int(member[0]), len(member)
            )
            weights = torch.cat([prototypes.prototypes().T, torch.zeros(1, len(member))])
        else:
            if self.samples.replayed is None:
                # Centred: the head tells the session's classes apart and says nothing about others.
                targets = targets - targets.mean(dim=0)
            weights = fit_ridge(features, targets, leave_one_out(features, targets)).float().cpu()
        head = content.subspace_head.clone()
        head[:, member] = weights
        return replace(
            content,
            subspace_head=head,
            subspace_mean=torch.cat([content.subspace_mean[:-1], standardiser.mean.cpu()[None]]),
            subspace_scale=torch.cat([content.subspace_scale[:-1], standardiser.scale.cpu()[None]]),
        )

    @torch.no_grad()
    def _best_blend(self, trial: Content) -> float:
        """Return the smallest blend with the highest accuracy inside the session on unseen samples."""
        unseen = self.samples.unseen.nonzero().squeeze(1)
        base = self.samples.base.rows(unseen.to(self.backbone.device))
        truth = self.samples.columns[unseen]
        correct = []
        for blend in BLENDS:
            content = replace(trial, blend=torch.cat([trial.blend[:-1], torch.tensor([blend])]))
            network = AnswerNetwork(self.backbone, self.settings, content)
            batches = torch.split(torch.arange(len(truth)), self.settings.batch_size)
            scores = torch.cat(
                [network.scores(base.rows(rows.to(self.backbone.device)))[0] for rows in batches]
            )
            member = network.class_subspace == len(content.subspaces) - 1
            found = scores.where(member[None, :], -torch.inf).argmax(dim=1)
            correct.append(int((found.cpu() == truth).sum()))
        return BLENDS[correct.index(max(correct))]
