"""The settings of a supermask method."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cl_engine.masks.density import SUPSUP_CLAMP, erdos_renyi_densities, erdos_renyi_scale
from cl_engine.supermask.network import MaskedNetwork

Method = Literal["supsup", "ssnet", "exssnet"]


class SupermaskSettings(BaseModel):
    """How one session's subnetwork is found and trained; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    method: Method = "exssnet"
    """`supsup`: masks only; `exssnet`: then the weights no earlier mask holds; `ssnet`: then every weight
    of the mask, which forgets (the ablation)."""
    selection: Literal["top_share", "threshold"] = "top_share"
    """What a mask keeps: the share `density` of each layer with the largest |score|, or the weights whose
    score is not negative, about half. The latter is SupSup's way where a sample's session is not known,
    and has no density to count capacity by: only for `supsup`."""
    density: float = Field(default=0.1, gt=0, le=1)
    """Share of all weights a session's mask keeps."""
    allocation: Literal["uniform", "erdos_renyi"] = "uniform"
    """The same density in every layer, or more in layers with few weights per unit."""
    clamp: float = Field(default=SUPSUP_CLAMP, gt=0, le=1)
    """Highest density of a layer with `erdos_renyi`."""
    epochs: int = Field(default=20, ge=1)
    """Epochs of both phases together, so that methods with and without a weight phase compare fairly."""
    weight_share: float = Field(default=0.5, ge=0, lt=1)
    """Share of the epochs that train weights; `supsup` has no such phase and trains masks throughout."""
    shorten_weight_phase: bool = False
    """Multiply `weight_share` by the share of all weights that are still free, and train the mask in the
    epochs that this saves: late sessions have few weights left to train. Off, as in the paper. On sketches
    held out from training (QuickDraw-345 in 23 sessions, LeNet, one seed) it takes A_T from 0.389 to 0.424 at
    a density of 30 %, from 0.481 to 0.487 at 10 % and, where weights do not run out, from 0.469 to 0.460 at
    2 %; `supsup` has 0.439, 0.490 and 0.441. Test sketches of three seeds say 0.418 to 0.454, 0.501 to 0.511
    and 0.487 to 0.489 (`tests.benchmarks.exssnet_supsup`). So: for many sessions of a high density."""
    mask_lr: float = Field(default=0.01, gt=0)
    """Adam's learning rate for scores, falling to 0 along a cosine over the phase."""
    weight_lr: float = Field(default=0.01, gt=0)
    """Adam's learning rate for weights, falling to 0 along a cosine over the phase."""
    batch_size: int = Field(default=64, ge=2)
    """Samples per step."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """What training computes in: `bfloat16` in the forward pass, `tf32` in every product, on GPUs that have
    it (elsewhere it is `float32`). Weights, scores and serving stay float32."""
    kkt: Literal["off", "best", "always", "all"] = "off"
    """Which earlier scores a new session starts from: none, those of the best session if it beats chance,
    those of the best in any case, or the mean of all that beat chance. Other than `off`, every session
    keeps its scores: 4 bytes per weight and session where the mask takes 1/8."""
    kkt_neighbours: int = Field(default=10, ge=1)
    """k of the nearest-neighbour vote that ranks earlier sessions; the published code has 200."""
    kkt_samples: int = Field(default=1000, ge=3)
    """Most samples of the new session that the vote looks at; bounds KKT's cost."""
    least_free: float = Field(default=0.0, ge=0, lt=1)
    """Share of all weights that must still be free when an `exssnet` session starts."""
    when_full: Literal["refuse", "densify"] = "refuse"
    """With fewer free weights than `least_free`: raise CapacityExhausted, or raise the session's density
    so that it can expect as many weights of its own as at the limit."""
    max_density: float = Field(default=0.5, gt=0, le=1)
    """Highest density that `densify` may choose."""

    @model_validator(mode="after")
    def _consistent(self) -> SupermaskSettings:
        if self.when_full == "densify" and self.least_free == 0:
            raise ValueError(
                "when_full is 'densify' but least_free is 0: set the share below which density rises"
            )
        if self.selection == "threshold" and self.method != "supsup":
            raise ValueError(
                f"selection is 'threshold' but method is {self.method!r}, whose capacity is counted by "
                "density: use 'top_share', or method 'supsup'"
            )
        if self.shorten_weight_phase and self.method != "exssnet":
            raise ValueError(f"shorten_weight_phase is on but method is {self.method!r}: it is for 'exssnet'")
        if self.allocation == "erdos_renyi" and self.density > self.clamp:
            raise ValueError(f"density is {self.density}, above clamp {self.clamp}: no layer may keep more")
        return self

    @property
    def weight_epochs(self) -> int:
        """Epochs of the weight phase."""
        return 0 if self.method == "supsup" else round(self.epochs * self.weight_share)

    @property
    def mask_epochs(self) -> int:
        """Epochs of the mask phase."""
        return self.epochs - self.weight_epochs

    @property
    def keeps_scores(self) -> bool:
        """Whether sessions keep the scores behind their masks."""
        return self.kkt != "off"


def layer_densities(network: MaskedNetwork, settings: SupermaskSettings) -> dict[str, float]:
    """Divide the density among the layers."""
    if settings.allocation == "uniform":
        return dict.fromkeys(network.weights, settings.density)
    shapes = {name: tuple(weight.shape) for name, weight in network.weights.items()}
    scale = erdos_renyi_scale(shapes, settings.density, settings.clamp)
    return erdos_renyi_densities(shapes, scale, settings.clamp)


def overall_density(network: MaskedNetwork, densities: dict[str, float]) -> float:
    """Return the share of all weights that these layer densities keep."""
    kept = math.fsum(densities[name] * weight.numel() for name, weight in network.weights.items())
    return kept / network.size
