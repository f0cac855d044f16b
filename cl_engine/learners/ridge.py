"""The ridge baseline: an exact ridge head over frozen multi-layer features, the base of every method."""

from __future__ import annotations

from typing import Literal

from cl_engine.backbones import BlockwiseBackbone
from cl_engine.features import Extract, extract
from cl_engine.learners.analytic import AnalyticLearner, AnalyticSettings


class RidgeSettings(AnalyticSettings):
    """Settings of the ridge baseline."""

    standardise: Literal["none", "first_session"] = "none"
    """As SGDS's base head, and for the same reason: see `SGDSSettings.standardise`."""


class RidgeLearner(AnalyticLearner):
    """Learner of the method `ridge`; the strength is cross-validated over every sample ever seen."""

    method = "ridge"

    def __init__(
        self,
        backbone: BlockwiseBackbone,
        settings: RidgeSettings | None = None,
        extract: Extract = extract,
    ) -> None:
        super().__init__(backbone, settings or RidgeSettings(), extract)
