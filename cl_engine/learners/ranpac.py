"""RanPAC (McDonnell et al., NeurIPS 2023): the ridge head over a random projection through a ReLU.

The projection is drawn again from `projection_seed` wherever it is needed; a generation holds a few of
its numbers, so that a release of torch that draws others is noticed and not answered with.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from cl_engine.backbones import BlockwiseBackbone
from cl_engine.errors import UnsupportedGeneration
from cl_engine.features import Extract, extract
from cl_engine.generation import Generation
from cl_engine.learners.analytic import AnalyticLearner, AnalyticServable, AnalyticSettings
from cl_engine.learners.table import check_origin
from cl_engine.samples import SampleSet

PROBE = "projection_probe"
PROBE_LENGTH = 8


class RanPACSettings(AnalyticSettings):
    """Settings of the RanPAC baseline."""

    projection: int = Field(default=5000, ge=1)
    """Random features M; the statistics take 8 M^2 bytes on disk and twice that while a session runs."""
    projection_seed: int = Field(default=0, ge=0)
    """The projection is drawn from it and not stored."""


class RanPACLearner(AnalyticLearner):
    """Learner of the method `ranpac`; the strength is cross-validated over every sample ever seen."""

    method = "ranpac"
    fixed = (*AnalyticLearner.fixed, "projection", "projection_seed")
    settings: RanPACSettings

    def __init__(
        self,
        backbone: BlockwiseBackbone,
        settings: RanPACSettings | None = None,
        extract: Extract = extract,
    ) -> None:
        super().__init__(backbone, settings or RanPACSettings(), extract)
        self._drawn: Tensor | None = None

    def lift(self, standard: Tensor) -> Tensor:
        """Project standardised features (N, D) and cut at zero, (N, M)."""
        return torch.relu(standard @ self._projection(standard.shape[1]))

    def lifted(self, dimensions: int) -> int:
        """Return M."""
        del dimensions
        return self.settings.projection

    def extra_tensors(self, dimensions: int) -> dict[str, Tensor]:
        """Return the first numbers of the projection."""
        return {PROBE: self._projection(dimensions).flatten()[:PROBE_LENGTH].cpu().clone()}

    def servable(self, generation: Generation) -> AnalyticServable:
        """Build the thing that answers requests; see `Learner.servable`."""
        check_origin(generation, self.method, self.backbone.id)
        self._check_projection(generation)
        return super().servable(generation)

    def forget(self, generation: Generation, class_id: int, samples: SampleSet) -> Generation:
        """Take a class out, exactly; see `AnalyticLearner.forget`."""
        check_origin(generation, self.method, self.backbone.id)
        self._check_projection(generation)
        return super().forget(generation, class_id, samples)

    def _projection(self, dimensions: int) -> Tensor:
        """Return the projection (D, M): normal, scaled so that projected features have unit variance."""
        if self._drawn is None:
            draw = torch.Generator().manual_seed(self.settings.projection_seed)
            drawn = torch.randn(dimensions, self.settings.projection, generator=draw)
            self._drawn = drawn.div_(math.sqrt(dimensions)).to(self.backbone.device)
        return self._drawn

    def _check_projection(self, generation: Generation) -> None:
        probe = self.extra_tensors(len(generation.tensors["mean"]))[PROBE]
        if not torch.equal(probe, generation.tensors[PROBE]):
            raise UnsupportedGeneration(
                f"generation {generation.digest}: torch {torch.__version__} draws another projection from "
                f"seed {self.settings.projection_seed} than it was made with: use the release of torch that "
                "made it"
            )
