"""The nearest-class-mean baseline: cosine to the mean of a class's frozen features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from cl_engine import calibration
from cl_engine.backbones import BlockwiseBackbone
from cl_engine.backbones.blockwise import feature_width
from cl_engine.features import BaseFeatures, Extract, base_pass, extract
from cl_engine.generation import Generation
from cl_engine.heads import PrototypeStatistics
from cl_engine.heads.prototypes import cosine_scores
from cl_engine.learners.base import Prediction, Progress, ProgressListener
from cl_engine.learners.certificate import certify_removal, certify_sums
from cl_engine.learners.forgetting import check_known, without_class
from cl_engine.learners.table import check_origin, check_unchanged, class_table
from cl_engine.samples import SampleSet, SessionData

METHOD = "ncm"


class NearestMeanSettings(BaseModel):
    """Settings of the nearest-class-mean baseline."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    feature_blocks: int = Field(default=1, ge=1)
    """CLS token and patch mean of this many of the last blocks are the features."""


class NearestMeanLearner:
    """Learner of the method `ncm`."""

    method = METHOD

    def __init__(
        self,
        backbone: BlockwiseBackbone,
        settings: NearestMeanSettings | None = None,
        extract: Extract = extract,
    ) -> None:
        self.backbone, self._extract = backbone, extract
        self.settings = settings or NearestMeanSettings()

    def servable(self, generation: Generation) -> NearestMeanServable:
        """Build the thing that answers requests; see `Learner.servable`."""
        return NearestMeanServable(self.backbone, generation)

    def learn(
        self,
        data: SessionData,
        previous: Generation | None,
        *,
        checkpoint: Path | None = None,
        on_progress: ProgressListener | None = None,
    ) -> Generation:
        """Add the new samples to the class means; takes one frozen pass, so nothing is checkpointed.

        Raises:
            UnsupportedGeneration: the previous generation is of another method or backbone.
            ValueError: wrong classes, or features of another shape than the previous generation's.
        """
        del checkpoint
        if previous is not None:
            check_origin(previous, METHOD, self.backbone.id)
            check_unchanged(previous, self.settings, ("feature_blocks",))
        report = on_progress or (lambda _: None)
        table = class_table(previous, data)
        features = self._extract(self.backbone, data.train, self.settings.feature_blocks).features
        column_of = {entry.id: column for column, entry in enumerate(table)}
        columns = torch.tensor([column_of[int(c)] for c in data.train.labels], dtype=torch.int64)
        state = PrototypeStatistics.empty(features.shape[1])
        if previous is not None:
            stored = previous.learner_state
            state = PrototypeStatistics(stored["total"], stored["count"])
        state = state.updated(features, columns, len(table))
        new = [i for i, c in enumerate(data.holdout.labels.tolist()) if c in data.new_classes]
        held = self._extract(self.backbone, data.holdout, self.settings.feature_blocks, indices=new).features
        prototypes = state.prototypes()
        scores = cosine_scores(held, prototypes).cpu()
        truth = torch.tensor([column_of[int(data.holdout.labels[i])] for i in new], dtype=torch.int64)
        known = torch.zeros(0) if previous is None else previous.tensors["distances"]
        sharpness = torch.tensor([calibration.fit_sharpness(scores, truth)])
        if previous is not None and not new:
            sharpness = previous.tensors["sharpness"]
        nearest = scores.max(dim=1).values if len(new) else torch.zeros(0)
        report(Progress("head", 1.0))
        made = Generation(
            method=METHOD,
            backbone=self.backbone.id,
            session=data.session,
            settings=self.settings.model_dump(),
            classes=table,
            tensors={
                "prototypes": prototypes,
                "sharpness": sharpness,
                "distances": calibration.merge_distances(known, 1 - nearest),
            },
            learner_state={"total": state.total, "count": state.count},
            parent=None if previous is None else previous.digest,
        )
        return replace(
            made, certificate=certify_sums(previous, made, Counter(int(c) for c in data.train.labels))
        )

    def forget(self, generation: Generation, class_id: int, samples: SampleSet) -> Generation:
        """Drop a class's mean; the other means never held anything of it.

        Raises:
            UnsupportedGeneration: of another method or backbone, or without its learner state.
            ValueError: the class is unknown or the last one, or a sample is of another class.
        """
        check_origin(generation, METHOD, self.backbone.id)
        column = check_known(generation, class_id, samples)
        stored = generation.learner_state
        state = PrototypeStatistics(stored["total"], stored["count"]).without(column)
        made = without_class(
            generation,
            class_id,
            tensors={**generation.tensors, "prototypes": state.prototypes()},
            learner_state={"total": state.total, "count": state.count},
            certificate={"forgotten": class_id},
        )
        return replace(made, certificate={**certify_removal(generation, made), **made.certificate})


class NearestMeanServable:
    """A nearest-class-mean generation made ready to answer."""

    def __init__(self, backbone: BlockwiseBackbone, generation: Generation) -> None:
        check_origin(generation, METHOD, backbone.id)
        self._backbone = backbone
        self.digest = generation.digest
        self.class_ids = generation.class_ids
        self.labels: Mapping[int, str] = {entry.id: entry.label for entry in generation.classes}
        self._settings = NearestMeanSettings(**generation.settings)
        self._prototypes = generation.tensors["prototypes"].to(backbone.device)
        self._sharpness = float(generation.tensors["sharpness"])
        self._distances = generation.tensors["distances"].to(backbone.device)

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Decode one payload to one input row; raises `InputError`."""
        return self._backbone.decode(payload, content_type)

    def nbytes(self) -> int:
        """Bytes held on the device beyond the shared backbone."""
        return sum(t.numel() * t.element_size() for t in (self._prototypes, self._distances))

    @torch.inference_mode()
    def predict(self, inputs: Tensor) -> Prediction:
        """Classify a batch of inputs (B, ...); see `Servable.predict`."""
        return self.predict_from(base_pass(self._backbone, inputs, self._settings.feature_blocks, None))

    @torch.inference_mode()
    def predict_from(self, base: BaseFeatures) -> Prediction:
        """Classify from base features that hold at least this generation's blocks, the last ones last."""
        width = feature_width(self._backbone, self._settings.feature_blocks)
        scores = cosine_scores(base.features[:, -width:], self._prototypes)
        best = scores.max(dim=1)
        return Prediction(
            scores=torch.softmax(scores * self._sharpness, dim=1).cpu(),
            class_ids=torch.tensor(self.class_ids)[best.indices.cpu()],
            unknown=calibration.unknown_score(1 - best.values, self._distances).cpu(),
        )
