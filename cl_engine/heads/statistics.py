"""All that the analytic heads need of the past: exact sums over every sample so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cl_engine.errors import UnsupportedGeneration
from cl_engine.generation import Generation
from cl_engine.heads.prototypes import PrototypeStatistics
from cl_engine.heads.ridge import RidgeStatistics


@dataclass(frozen=True)
class Statistics:
    """Exact sums over every sample so far, which only the next session needs.

    Attributes:
        ridge: fold-wise sums of the standardised features.
        prototypes: sums of unit-length features per class.
    """

    ridge: RidgeStatistics
    prototypes: PrototypeStatistics

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return self.ridge.tensors("ridge.") | {
            "prototypes.total": self.prototypes.total,
            "prototypes.count": self.prototypes.count,
        }


def read_statistics(generation: Generation, device: torch.device) -> Statistics:
    """Read the statistics of a previous generation.

    Raises:
        UnsupportedGeneration: its learner state was pruned, so nothing can be built on it.
    """
    state = generation.learner_state
    if "ridge.gram" not in state:
        raise UnsupportedGeneration(
            f"generation {generation.digest}: its learner state is gone, build on one that keeps it"
        )
    return Statistics(
        RidgeStatistics.read(state, "ridge.", device),
        PrototypeStatistics(state["prototypes.total"], state["prototypes.count"]),
    )
