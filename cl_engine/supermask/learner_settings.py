"""Settings of the supermask methods as learners over a frozen backbone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cl_engine.supermask.architectures import FeatureMLP
from cl_engine.supermask.settings import SupermaskSettings

Routing = Literal["ridge", "prototype", "entropy", "all"]


class LearnerSettings(SupermaskSettings):
    """What both learners have: features, the masked network over them, and how sessions are told apart."""

    feature_blocks: int = Field(default=4, ge=1)
    """CLS token and patch mean of this many of the last blocks are the features."""
    hidden: tuple[int, ...] = Field(default=(256,), min_length=1)
    """Widths of the masked perceptron's hidden layers, shared by all sessions."""
    outputs: int = Field(default=64, ge=2)
    """Width of the head: the most classes one session can bring."""
    routing: Routing = "ridge"
    """Which session's subnetwork is asked about a sample whose session nobody tells: that of the class
    with the highest ridge score, of the nearest class prototype, the one with the lowest entropy, or all.
    The last two run every subnetwork."""
    trust: float = Field(default=0.5, ge=0)
    """Weight of a subnetwork's log-probabilities beside those of the ridge head; 0 leaves the ridge alone."""
    resident: int = Field(default=16, ge=1)
    """Masked subnetworks a servable keeps ready; others are unpacked when they are asked."""

    def build(self, dimensions: int) -> FeatureMLP:
        """Build the architecture for features of a given length."""
        return FeatureMLP(dimensions, self.hidden, self.outputs)


class ExSSNeTSettings(LearnerSettings):
    """Settings of the method `exssnet`."""

    method: Literal["exssnet"] = "exssnet"
    """Masks, then the weights no earlier mask holds."""


class SupSupSettings(LearnerSettings):
    """Settings of the method `supsup`."""

    method: Literal["supsup"] = "supsup"
    """Masks only."""
