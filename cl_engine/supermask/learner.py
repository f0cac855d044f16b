"""ExSSNeT and SupSup as learners over a frozen backbone, for streams without task ids.

A session goes through these steps.

1. The frozen pass: multi-layer features, standardised with the first session's statistics.
2. The session's new classes get a subnetwork of the masked perceptron over those features (`training`). A
   session of a single class has nothing to tell apart and takes no part of the network.
3. The exact ridge and prototype statistics take all samples in.
4. The certificate: weights, masks and norms of every earlier subnetwork are bit-identical.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_engine import calibration
from cl_engine.backbones import BlockwiseBackbone
from cl_engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cl_engine.errors import CapacityExhausted, UnsupportedGeneration
from cl_engine.features import Extract, extract
from cl_engine.generation import Generation
from cl_engine.heads import PrototypeStatistics, RidgeStatistics, Standardiser
from cl_engine.heads.ridge import fold_of
from cl_engine.heads.statistics import Statistics, read_statistics
from cl_engine.learners.base import Progress, ProgressListener
from cl_engine.learners.table import check_origin, class_table
from cl_engine.samples import SampleSet, SessionData
from cl_engine.supermask.capacity import capacity, session_settings
from cl_engine.supermask.certificate import certify, verify
from cl_engine.supermask.content import Content, read_content
from cl_engine.supermask.forgetting import forget_class
from cl_engine.supermask.learner_settings import ExSSNeTSettings, LearnerSettings, SupSupSettings
from cl_engine.supermask.network import MaskedNetwork
from cl_engine.supermask.servable import Scorer, SupermaskServable
from cl_engine.supermask.training import EpochEnd, TrainedSession, train_session

# Share of a session's time, for the progress bar: the frozen pass, then training, then the heads.
FEATURES_SHARE, TRAINING_SHARE = 0.5, 0.4


class SupermaskLearner:
    """What both methods do; the settings say which it is."""

    def __init__(
        self, backbone: BlockwiseBackbone, settings: LearnerSettings, extract: Extract = extract
    ) -> None:
        self.backbone = backbone
        self.settings = settings
        self._extract = extract

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.settings.method

    def servable(self, generation: Generation) -> SupermaskServable:
        """Build the thing that answers requests from a generation.

        Raises:
            UnsupportedGeneration: it was made for another backbone or by another method.
        """
        return SupermaskServable(self.backbone, generation)

    def learn(
        self,
        data: SessionData,
        previous: Generation | None,
        *,
        checkpoint: Path | None = None,
        on_progress: ProgressListener | None = None,
    ) -> Generation:
        """Run one session; see `Learner.learn`.

        Raises:
            CapacityExhausted: no free weights are left, or the session has more classes than the head.
            Diverged: the loss is no longer finite.
            CertificateViolation: something of an earlier session would change.
            UnsupportedGeneration: the previous generation cannot be built on.
        """
        report = on_progress or (lambda _: None)
        if previous is not None and (previous.backbone, previous.method) != (self.backbone.id, self.method):
            raise UnsupportedGeneration(
                f"generation {previous.digest} is of {previous.method} on {previous.backbone}, this is "
                f"{self.method} on {self.backbone.id}"
            )
        if len(data.new_classes) > self.settings.outputs:
            raise CapacityExhausted(
                f"the session brings {len(data.new_classes)} classes, outputs is {self.settings.outputs}: "
                "train fewer classes a session, or start a stream with more outputs"
            )
        table = class_table(previous, data)
        column_of = {entry.id: column for column, entry in enumerate(table)}
        columns = torch.tensor([column_of[int(c)] for c in data.train.labels], dtype=torch.int64)
        total = max(1, len(columns))
        features = self._extract(
            self.backbone,
            data.train,
            self.settings.feature_blocks,
            on_batch=lambda n: report(Progress("features", FEATURES_SHARE * n / total, {"samples": n})),
        ).features
        content, statistics = self._start(previous, features, data.seed)
        standard = content.standardiser(features)
        new = torch.tensor([column_of[c] for c in sorted(data.new_classes)], dtype=torch.int64)
        trained = self._train(content.network, standard, columns, new, data, previous, checkpoint, report)
        report(Progress("head", FEATURES_SHARE + TRAINING_SHARE))
        statistics = _updated(statistics, standard, columns, fold_of(data.train.ids), len(table))
        strength = statistics.ridge.choose_strength()
        subnetwork = -1 if trained is None else len(content.network.sessions)
        outputs = torch.full((len(new),), -1) if trained is None else torch.arange(len(new))
        content = replace(
            content,
            ridge_weights=statistics.ridge.solve(strength).float(),
            prototypes=statistics.prototypes.prototypes().to(self.backbone.device),
            network=content.network if trained is None else trained.network,
            class_subnetwork=torch.cat([content.class_subnetwork, torch.full((len(new),), subnetwork)]),
            class_output=torch.cat([content.class_output, outputs]),
        )
        content = self._calibrated(content, data, column_of)
        certificate = self._certificate(content.network, previous)
        tensors, scores = content.split()
        report(Progress("head", 1.0))
        return Generation(
            method=self.method,
            backbone=self.backbone.id,
            session=data.session,
            settings=self.settings.model_dump(mode="json"),
            classes=table,
            tensors=tensors,
            learner_state=statistics.tensors() | scores,
            evaluation=self._described(content.network, trained, strength),
            certificate=certificate,
            parent=None if previous is None else previous.digest,
        )

    def forget(self, generation: Generation, class_id: int, samples: SampleSet) -> Generation:
        """Take a class out; see `supermask.forgetting` for what is exact and what stays.

        Raises:
            UnsupportedGeneration: of another method or backbone, or without its learner state.
            ValueError: the class is unknown or the last one, or the samples are not all that it was
                learnt from.
            CertificateViolation: something of another class would change.
        """
        check_origin(generation, self.method, self.backbone.id)
        return forget_class(
            self.backbone, self._extract, self.settings.feature_blocks, generation, class_id, samples
        )

    def _start(self, previous: Generation | None, features: Tensor, seed: int) -> tuple[Content, Statistics]:
        device, dimensions = self.backbone.device, features.shape[1]
        if previous is not None:
            return read_content(previous, device), read_statistics(previous, device)
        settings = self.settings
        content = Content(
            standardiser=Standardiser.fit(features),
            ridge_weights=torch.zeros(dimensions + 1, 0, device=device),
            prototypes=torch.zeros(0, dimensions, device=device),
            network=MaskedNetwork.create(lambda: settings.build(dimensions), seed, device),
            class_subnetwork=torch.zeros(0, dtype=torch.int64),
            class_output=torch.zeros(0, dtype=torch.int64),
            sharpness=torch.tensor([calibration.DEFAULT_SHARPNESS]),
            distances=torch.zeros(0),
        )
        empty = RidgeStatistics.empty(dimensions)
        ridge = replace(empty, gram=empty.gram.to(device), cross=empty.cross.to(device))
        return content, Statistics(ridge, PrototypeStatistics.empty(dimensions))

    def _train(
        self,
        network: MaskedNetwork,
        standard: Tensor,
        columns: Tensor,
        new: Tensor,
        data: SessionData,
        previous: Generation | None,
        checkpoint: Path | None,
        report: ProgressListener,
    ) -> TrainedSession | None:
        """Train the new classes' subnetwork; None where there is nothing to tell apart."""
        if len(new) < 2:
            return None
        own = torch.isin(columns, new)
        inputs = standard[own.to(standard.device)]
        labels = torch.searchsorted(new, columns[own])
        key = self._checkpoint_key(data, previous)
        found = None if checkpoint is None else load_checkpoint(checkpoint, key)
        before = {"mask": 0, "weights": session_settings(network, self.settings).mask_epochs}

        def listen(end: EpochEnd) -> None:
            if checkpoint is not None:
                save_checkpoint(checkpoint, key, Checkpoint(end.checkpoint(), {"phase": end.phase}))
            done = (before[end.phase] + end.epoch) / self.settings.epochs
            detail = {"epoch": end.epoch, "loss": end.loss, "accuracy": end.accuracy}
            report(Progress(end.phase, FEATURES_SHARE + TRAINING_SHARE * done, detail))

        return train_session(
            network,
            inputs,
            labels,
            self.settings,
            seed=data.seed,
            resume=None if found is None else found.tensors,
            on_epoch=listen,
        )

    @torch.no_grad()
    def _calibrated(self, content: Content, data: SessionData, column_of: Mapping[int, int]) -> Content:
        """Fit sharpness and the distance table on the holdout samples of the session's classes."""
        new = [i for i, label in enumerate(data.holdout.labels.tolist()) if label in data.new_classes]
        if not new:
            return content
        features = self._extract(
            self.backbone, data.holdout, self.settings.feature_blocks, indices=new
        ).features
        truth = torch.tensor([column_of[int(data.holdout.labels[i])] for i in new])
        # The ridge alone: its scores, unlike the subnetworks', are no log-probabilities yet.
        plain = replace(content, sharpness=torch.ones(1))
        scores, distances = Scorer(self.settings.model_copy(update={"trust": 0.0}), plain).scores(features)
        return replace(
            content,
            sharpness=torch.tensor([calibration.fit_sharpness(scores, truth)]),
            distances=calibration.merge_distances(content.distances, distances),
        )

    def _certificate(self, network: MaskedNetwork, previous: Generation | None) -> dict[str, Any]:
        if previous is not None:
            verify(network, previous.certificate)
        earlier = None if previous is None else previous.certificate
        verified = 0 if earlier is None else len(earlier["sessions"])
        return certify(network, earlier) | {"holds": True, "verified_subnetworks": verified}

    def _described(
        self, network: MaskedNetwork, trained: TrainedSession | None, strength: float
    ) -> dict[str, Any]:
        """Describe the session: capacity, what the subnetwork got, and where it started from."""
        room = capacity(network, self.settings)
        described: dict[str, Any] = {
            "ridge_strength": strength,
            "capacity": {"free_share": room.free_share, "sessions_left": room.sessions_left},
        }
        if trained is not None:
            described["exclusive_share"] = trained.exclusive_share
            if trained.transfer is not None:
                described["kkt"] = {
                    "accuracies": list(trained.transfer.accuracies),
                    "borrowed": list(trained.transfer.borrowed),
                }
        return described

    def _checkpoint_key(self, data: SessionData, previous: Generation | None) -> str:
        """Name what the checkpoint belongs to: backbone, parent, session, seed, settings, samples."""
        digest = hashlib.sha256()
        for part in (
            self.backbone.id,
            "" if previous is None else previous.digest,
            str(data.session),
            str(data.seed),
            self.settings.model_dump_json(),
            *data.train.ids,
        ):
            digest.update(part.encode() + b"\0")
        return digest.hexdigest()


class ExSSNeTLearner(SupermaskLearner):
    """Learner of the method `exssnet`."""

    def __init__(
        self,
        backbone: BlockwiseBackbone,
        settings: ExSSNeTSettings | None = None,
        extract: Extract = extract,
    ) -> None:
        super().__init__(backbone, settings or ExSSNeTSettings(), extract)


class SupSupLearner(SupermaskLearner):
    """Learner of the method `supsup`."""

    def __init__(
        self,
        backbone: BlockwiseBackbone,
        settings: SupSupSettings | None = None,
        extract: Extract = extract,
    ) -> None:
        super().__init__(backbone, settings or SupSupSettings(), extract)


def _updated(
    statistics: Statistics, standard: Tensor, columns: Tensor, folds: Tensor, classes: int
) -> Statistics:
    return Statistics(
        statistics.ridge.updated(standard, columns, folds, classes),
        statistics.prototypes.updated(standard, columns, classes),
    )
