"""What a generation of a supermask learner consists of, and its mapping to named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_engine.errors import UnsupportedGeneration
from cl_engine.generation import Generation
from cl_engine.heads import Standardiser
from cl_engine.masks.packing import pack
from cl_engine.supermask.learner_settings import ExSSNeTSettings, LearnerSettings, SupSupSettings
from cl_engine.supermask.network import MaskedNetwork, from_tensors, group, to_tensors

SETTINGS: Mapping[str, type[LearnerSettings]] = {"exssnet": ExSSNeTSettings, "supsup": SupSupSettings}

_NETWORK = "network/"


@dataclass(frozen=True)
class Content:
    """Everything a generation serves with. C classes, D features.

    Attributes:
        standardiser: of the features, fixed by the first session.
        ridge_weights: float32 (D + 1, C), the exact head over all classes.
        prototypes: float32 (C, D), unit-length class means.
        network: the masked network over standardised features.
        class_subnetwork: int64 (C,), which of its subnetworks knows a class; -1 for none. A class's
            output is its place among the classes of its subnetwork.
        sharpness: float32 (1,), factor that turns ridge scores into calibrated log-probabilities.
        distances: float32 (K,), sorted holdout distances to the nearest prototype.
    """

    standardiser: Standardiser
    ridge_weights: Tensor
    prototypes: Tensor
    network: MaskedNetwork
    class_subnetwork: Tensor
    sharpness: Tensor
    distances: Tensor

    def split(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Return the tensors and the masks that serving reads, and the scores that only training reads."""
        tensors = {
            "mean": self.standardiser.mean,
            "scale": self.standardiser.scale,
            "ridge_weights": self.ridge_weights,
            "prototypes": self.prototypes,
            "class_subnetwork": self.class_subnetwork,
            "sharpness": self.sharpness,
            "distances": self.distances,
        }
        flat = {_NETWORK + name: tensor for name, tensor in to_tensors(self.network).items()}
        scores = {name: flat.pop(name) for name in list(flat) if "/scores/" in name}
        masks = {}
        for session in range(len(self.network.sessions)):
            for name, mask in self.network.masks(session).items():
                key = f"{_NETWORK}session/{session}/masks/{name}"
                del flat[key]
                masks[key] = mask.cpu()
        # In one memory layout, so that the products, to the last bit, are those of the files read again.
        return {name: t.cpu().contiguous() for name, t in (tensors | flat).items()}, masks, scores


def read_settings(generation: Generation) -> LearnerSettings:
    """Read the settings a generation was made with.

    Raises:
        UnsupportedGeneration: another method made it.
    """
    if generation.method not in SETTINGS:
        raise UnsupportedGeneration(
            f"generation {generation.digest}: method {generation.method!r}, not one of {', '.join(SETTINGS)}"
        )
    return SETTINGS[generation.method].model_validate(generation.settings)


def read_content(generation: Generation, device: torch.device) -> Content:
    """Read the content of a generation onto a device.

    Raises:
        UnsupportedGeneration: another method made it, or its tensors are not those of this release.
    """
    settings = read_settings(generation)
    tensors = generation.tensors
    flat = group({**tensors, **generation.learner_state}, _NETWORK)
    flat |= {name.removeprefix(_NETWORK): pack(mask) for name, mask in generation.masks.items()}
    try:
        standardiser = Standardiser(tensors["mean"].to(device), tensors["scale"].to(device))
        dimensions = len(standardiser.mean)
        content = Content(
            standardiser=standardiser,
            ridge_weights=tensors["ridge_weights"].to(device),
            prototypes=tensors["prototypes"].to(device),
            network=from_tensors(lambda: settings.build(dimensions), flat, device),
            class_subnetwork=tensors["class_subnetwork"],
            sharpness=tensors["sharpness"],
            distances=tensors["distances"],
        )
    except (KeyError, ValueError) as error:
        raise UnsupportedGeneration(
            f"generation {generation.digest}: its tensors are not those of this release's "
            f"{generation.method}: {error}"
        ) from error
    used = {_NETWORK + name for name in to_tensors(content.network)}
    left_over = {name for name in (*tensors, *generation.masks) if name.startswith(_NETWORK)} - used
    if left_over:
        raise UnsupportedGeneration(f"generation {generation.digest}: tensors left over: {sorted(left_over)}")
    return content
