"""What a generation of a supermask learner consists of, and its mapping to named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_engine.errors import UnsupportedGeneration
from cl_engine.generation import Generation
from cl_engine.heads import Standardiser
from cl_engine.masks.coding import decode, encode
from cl_engine.masks.packing import pack
from cl_engine.supermask.learner_settings import ExSSNeTSettings, LearnerSettings, SupSupSettings
from cl_engine.supermask.network import MaskedNetwork, from_tensors, group, packed, to_tensors

SETTINGS: Mapping[str, type[LearnerSettings]] = {"exssnet": ExSSNeTSettings, "supsup": SupSupSettings}

_NETWORK = "network/"
# All of a session's masks in one tensor: a file's directory takes some hundred bytes an entry.
_CODED = "coded_masks"


@dataclass(frozen=True)
class Content:
    """Everything a generation serves with. C classes, D features.

    Attributes:
        standardiser: of the features, fixed by the first session.
        ridge_weights: float32 (D + 1, C), the exact head over all classes.
        prototypes: float32 (C, D), unit-length class means.
        network: the masked network over standardised features.
        class_subnetwork: int64 (C,), which of its subnetworks knows a class; -1 for none.
        class_output: int64 (C,), which of that subnetwork's outputs is the class's; -1 for none.
        sharpness: float32 (1,), factor that turns ridge scores into calibrated log-probabilities.
        distances: float32 (K,), sorted holdout distances to the nearest prototype.
    """

    standardiser: Standardiser
    ridge_weights: Tensor
    prototypes: Tensor
    network: MaskedNetwork
    class_subnetwork: Tensor
    class_output: Tensor
    sharpness: Tensor
    distances: Tensor

    def split(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the tensors that serving reads, masks entropy-coded, and the scores that training reads."""
        tensors = {
            "mean": self.standardiser.mean,
            "scale": self.standardiser.scale,
            "ridge_weights": self.ridge_weights,
            "prototypes": self.prototypes,
            "class_subnetwork": self.class_subnetwork,
            "class_output": self.class_output,
            "sharpness": self.sharpness,
            "distances": self.distances,
        }
        flat = to_tensors(self.network)
        for session in range(len(self.network.sessions)):
            masks = self.network.masks(session)
            for name in masks:
                del flat[f"session/{session}/masks/{name}"]
            flat[f"session/{session}/{_CODED}"] = encode({name: masks[name] for name in sorted(masks)})
        scores = {_NETWORK + name: flat.pop(name) for name in list(flat) if "/scores/" in name}
        tensors |= {_NETWORK + name: tensor for name, tensor in flat.items()}
        # In one memory layout, so that the products, to the last bit, are those of the files read again.
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, scores


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
    # Earlier releases kept the masks as the generation's own, bit-packed.
    flat |= {name.removeprefix(_NETWORK): pack(mask) for name, mask in generation.masks.items()}
    coded = {name for name in flat if name.endswith(f"/{_CODED}")}
    try:
        standardiser = Standardiser(tensors["mean"].to(device), tensors["scale"].to(device))
        dimensions = len(standardiser.mean)
        content = Content(
            standardiser=standardiser,
            ridge_weights=tensors["ridge_weights"].to(device),
            prototypes=tensors["prototypes"].to(device),
            network=from_tensors(lambda: settings.build(dimensions), _uncoded(flat), device),
            class_subnetwork=tensors["class_subnetwork"],
            class_output=_class_output(tensors),
            sharpness=tensors["sharpness"],
            distances=tensors["distances"],
        )
    except (KeyError, ValueError) as error:
        raise UnsupportedGeneration(
            f"generation {generation.digest}: its tensors are not those of this release's "
            f"{generation.method}: {error}"
        ) from error
    used = {_NETWORK + name for name in (*to_tensors(content.network), *coded)}
    left_over = {name for name in (*tensors, *generation.masks) if name.startswith(_NETWORK)} - used
    if left_over:
        raise UnsupportedGeneration(f"generation {generation.digest}: tensors left over: {sorted(left_over)}")
    return content


def _class_output(tensors: Mapping[str, Tensor]) -> Tensor:
    """Read the classes' outputs; before a class could be forgotten they were the places in the session."""
    if "class_output" in tensors:
        return tensors["class_output"]
    subnetworks = tensors["class_subnetwork"].tolist()
    return torch.tensor([-1 if s < 0 else subnetworks[:i].count(s) for i, s in enumerate(subnetworks)]).long()


def _uncoded(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace each session's coded masks by bit-packed ones.

    Raises:
        ValueError: coded masks are damaged, belong to no session, or to one that has its masks already.
    """
    shapes = {name: tensor.shape for name, tensor in sorted(group(flat, "weights/").items())}
    made = {name: tensor for name, tensor in flat.items() if not name.endswith(f"/{_CODED}")}
    for name in flat.keys() - made.keys():
        session = name.removesuffix(f"/{_CODED}")
        if f"{session}/classes" not in flat or group(flat, f"{session}/masks/"):
            raise ValueError(f"{name} belongs to no session, or to one that has its masks already")
        try:
            masks = decode(flat[name], shapes)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        made |= {f"{session}/masks/{layer}": mask for layer, mask in packed(masks).items()}
    return made
