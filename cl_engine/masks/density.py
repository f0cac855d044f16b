"""How a network's budget of kept weights is divided among its layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

SUPSUP_CLAMP = 0.5


def erdos_renyi_densities(
    shapes: Mapping[str, Sequence[int]], scale: float, clamp: float = SUPSUP_CLAMP
) -> dict[str, float]:
    """Give each layer the density min(clamp, scale * (out + in) / (out * in * kernel)).

    A layer with many weights per unit is kept sparser than one with few. SupSup clamps at 0.5, because a
    mask that keeps more than half of a layer chooses among fewer subnetworks again; ExSSNeT's code has no
    clamp, which is `clamp=1`.

    Args:
        shapes: weight shape (out, in, *kernel) of each layer.
        scale: the factor, above 0; about the number of weights kept per input and output unit.
        clamp: highest density of a layer, above 0 and at most 1.

    Raises:
        ValueError: a setting is out of range or a shape has fewer than two dimensions.
    """
    if scale <= 0:
        raise ValueError(f"scale is {scale}: it must be above 0")
    if not 0 < clamp <= 1:
        raise ValueError(f"clamp is {clamp}: choose a density above 0 and at most 1")
    return {
        name: min(clamp, scale * _units(name, shape) / math.prod(shape)) for name, shape in shapes.items()
    }


def erdos_renyi_scale(
    shapes: Mapping[str, Sequence[int]], density: float, clamp: float = SUPSUP_CLAMP
) -> float:
    """Find the scale at which `erdos_renyi_densities` keeps this share of all weights.

    Raises:
        ValueError: the density is not above 0, or above the clamp, which no scale reaches.
    """
    if not 0 < density <= clamp:
        raise ValueError(f"density is {density}: with clamp {clamp} choose one above 0 and at most {clamp}")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    units = {name: _units(name, shape) for name, shape in shapes.items()}
    budget = density * sum(sizes.values())
    # Layers reach the clamp in the order of their units per weight; the rest shares what is left.
    remaining = sorted(shapes, key=lambda name: units[name] / sizes[name])
    while True:
        scale = budget / sum(units[name] for name in remaining)
        most = remaining[-1]
        if scale * units[most] <= clamp * sizes[most] or len(remaining) == 1:
            return scale
        budget -= clamp * sizes[most]
        remaining.pop()


def _units(name: str, shape: Sequence[int]) -> int:
    if len(shape) < 2:
        raise ValueError(
            f"layer {name!r} has shape {tuple(shape)}: it needs an output and an input dimension"
        )
    return shape[0] + shape[1]
