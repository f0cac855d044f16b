"""The streaming LDA baseline: linear discriminants over frozen multi-layer features."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from cl_engine.backbones import BlockwiseBackbone
from cl_engine.features import Extract, extract
from cl_engine.heads import RidgeStatistics
from cl_engine.heads.lda import lda_weights
from cl_engine.learners.analytic import AnalyticLearner, AnalyticSettings


class SLDASettings(AnalyticSettings):
    """Settings of the streaming LDA baseline."""

    shrinkage: float = Field(default=0.1, gt=0, le=1)
    """Share of the covariance's mean variance mixed into it; 1 is the nearest mean in Euclidean distance."""


class SLDALearner(AnalyticLearner):
    """Learner of the method `slda`."""

    method = "slda"
    settings: SLDASettings

    def __init__(
        self,
        backbone: BlockwiseBackbone,
        settings: SLDASettings | None = None,
        extract: Extract = extract,
    ) -> None:
        super().__init__(backbone, settings or SLDASettings(), extract)

    def solve(self, statistics: RidgeStatistics) -> tuple[Tensor, float]:
        """Solve for the discriminants at the set shrinkage."""
        return lda_weights(statistics, self.settings.shrinkage), self.settings.shrinkage
