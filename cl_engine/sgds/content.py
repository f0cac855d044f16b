"""What an SGDS generation consists of, as typed fields, and its mapping to named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from cl_engine.errors import UnsupportedGeneration
from cl_engine.generation import Generation
from cl_engine.heads import PrototypeStatistics, RidgeStatistics
from cl_engine.sgds.adapter import Subspaces
from cl_engine.sgds.exemplars import Exemplars
from cl_engine.shared_adapters import SharedAdapters

METHOD = "sgds"
# Fields of `Content` that are not one tensor each.
COMPOSED = {"subspaces", "class_masks", "shared", "joined"}
FAMILY = "family."


@dataclass(frozen=True)
class Content:
    """Everything an SGDS generation serves with. C classes, S subspaces, L adapters, width d.

    Attributes:
        mean, scale: float32 (D,), standardisation of the base features.
        base_weights: float32 (D + 1, C), ridge head on the base features.
        prototypes: float32 (C, D), unit-length class means of the standardised base features.
        subspaces: the sessions' bottleneck units and masks.
        class_masks: bool (C, L, d), each class's own top-K mask of input activations.
        class_subspace: int64 (C,), subspace of each class, -1 where it has none.
        subspace_mean, subspace_scale: float32 (S, D2), standardisation of the adapted features.
        subspace_head: float32 (D2 + 1, C), each class's column of its session's own head.
        blend: float32 (S,), weight of the session's own scores against the base scores.
        activation_mean, activation_scale: float32 (L, d), for z-scores of adapter inputs.
        sharpness: float32 (1,), factor that turns scores into calibrated log-probabilities.
        distances: float32 (K,), sorted holdout distances to the nearest prototype.
        shared: adapters of the first session, under everything since; None where it adapted nothing.
        joined: bool (S,), subspaces that classes of later sessions have joined (see `family`); None for none.
    """

    mean: Tensor
    scale: Tensor
    base_weights: Tensor
    prototypes: Tensor
    subspaces: Subspaces
    class_masks: Tensor
    class_subspace: Tensor
    subspace_mean: Tensor
    subspace_scale: Tensor
    subspace_head: Tensor
    blend: Tensor
    activation_mean: Tensor
    activation_scale: Tensor
    sharpness: Tensor
    distances: Tensor
    shared: SharedAdapters | None = None
    joined: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in COMPOSED}
        if self.shared is not None:
            named |= self.shared.tensors()
        if self.joined is not None:
            named["joined"] = self.joined
        return named | {
            "down": self.subspaces.down,
            "up": self.subspaces.up,
            "borrowed": self.subspaces.borrowed,
        }

    def masks(self) -> dict[str, Tensor]:
        """Return the mask set: per class, per session, and the units each session feeds forward."""
        return {
            "input.class": self.class_masks,
            "input.session": self.subspaces.input_masks,
            "units": self.subspaces.unit_masks(),
        }


def read_content(generation: Generation) -> Content:
    """Read the content of a generation, checking that nothing is missing or left over.

    Raises:
        UnsupportedGeneration: another method made it, or its tensors are not SGDS's.
    """
    if generation.method != METHOD:
        raise UnsupportedGeneration(f"generation {generation.digest}: method {generation.method!r}, not sgds")
    tensors = dict(generation.tensors)
    shared = SharedAdapters.read(tensors, torch.device("cpu"))
    for name in () if shared is None else shared.tensors():
        del tensors[name]
    joined = tensors.pop("joined", None)
    wanted = {f.name for f in fields(Content)} - COMPOSED | {"down", "up", "borrowed"}
    if tensors.keys() != wanted or generation.masks.keys() != {
        "input.class",
        "input.session",
        "units",
    }:
        raise UnsupportedGeneration(
            f"generation {generation.digest}: tensors {sorted(generation.tensors)} and masks "
            f"{sorted(generation.masks)} are not those of this release's sgds"
        )
    subspaces = Subspaces(
        tensors.pop("down"), tensors.pop("up"), tensors.pop("borrowed"), generation.masks["input.session"]
    )
    content = Content(
        subspaces=subspaces,
        class_masks=generation.masks["input.class"],
        shared=shared,
        joined=joined,
        **tensors,
    )
    if not torch.equal(subspaces.unit_masks(), generation.masks["units"]):
        raise UnsupportedGeneration(
            f"generation {generation.digest}: the unit masks do not follow from what was borrowed"
        )
    return content


@dataclass(frozen=True)
class LearnerState:
    """What only the next session needs: exact sums over every sample so far.

    Attributes:
        ridge: fold-wise sums of the base features.
        prototypes: sums of unit-length standardised base features per class.
        counters: float32 (C, L, d), activation counters A.
        strength: the ridge strength chosen last.
        exemplars: stored samples, None where none are kept.
        families: sums of founders' subspaces over the classes of their families, by subspace.
    """

    ridge: RidgeStatistics
    prototypes: PrototypeStatistics
    counters: Tensor
    strength: float
    exemplars: Exemplars | None = None
    families: Mapping[int, RidgeStatistics] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        optional = {} if self.exemplars is None else self.exemplars.tensors()
        for founder, statistics in self.families.items():
            optional |= statistics.tensors(f"{FAMILY}{founder}.")
        return (
            optional
            | self.ridge.tensors("ridge.")
            | {
                "prototypes.total": self.prototypes.total,
                "prototypes.count": self.prototypes.count,
                "counters": self.counters,
                "strength": torch.tensor([self.strength], dtype=torch.float64),
            }
        )


def read_learner_state(tensors: Mapping[str, Tensor], device: torch.device) -> LearnerState:
    """Read the learner state of a previous generation.

    Raises:
        UnsupportedGeneration: it was pruned; sessions build on the live generation, which keeps it.
    """
    if "ridge.gram" not in tensors:
        raise UnsupportedGeneration("the previous generation's learner state is gone: it cannot be built on")
    return LearnerState(
        RidgeStatistics.read(tensors, "ridge.", device),
        PrototypeStatistics(tensors["prototypes.total"], tensors["prototypes.count"]),
        tensors["counters"],
        float(tensors["strength"]),
        Exemplars.read(tensors, device),
        {
            founder: RidgeStatistics.read(tensors, f"{FAMILY}{founder}.", device)
            for founder in sorted({int(n.split(".")[1]) for n in tensors if n.startswith(FAMILY)})
        },
    )
