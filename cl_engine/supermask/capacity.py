"""How much room is left for sessions that want weights of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cl_engine.errors import CapacityExhausted
from cl_engine.supermask.network import MaskedNetwork
from cl_engine.supermask.settings import SupermaskSettings, layer_densities, overall_density


@dataclass(frozen=True)
class Capacity:
    """What is free in a network.

    Attributes:
        sessions: sessions learnt so far.
        free_share: share of all weights that no mask holds.
        free_by_layer: the same per layer.
        sessions_left: sessions of the settings' density that can still start, expecting masks to fall
            independently of each other: each leaves (1 - density) of what was free.
    """

    sessions: int
    free_share: float
    free_by_layer: dict[str, float]
    sessions_left: int


def capacity(network: MaskedNetwork, settings: SupermaskSettings) -> Capacity:
    """Report what is free, and for how many sessions of these settings it will do."""
    used = network.used()
    free_by_layer = {name: 1 - mask.double().mean().item() for name, mask in used.items()}
    free = sum(int((~mask).sum()) for mask in used.values()) / network.size
    return Capacity(
        sessions=len(network.sessions),
        free_share=free,
        free_by_layer=free_by_layer,
        sessions_left=sessions_left(free, settings.density, max(settings.least_free, 1 / network.size)),
    )


def session_settings(network: MaskedNetwork, settings: SupermaskSettings) -> SupermaskSettings:
    """Return the settings of the next session: with its own `weight_share` where that shortens."""
    if not settings.shorten_weight_phase:
        return settings
    free = capacity(network, settings).free_share
    return settings.model_copy(update={"weight_share": settings.weight_share * free})


def sessions_left(free: float, density: float, least: float) -> int:
    """Count the sessions that can start while the free share shrinks by (1 - density) with each.

    Args:
        free: share that is free now.
        density: share of all weights that each session's mask holds, above 0 and at most 1.
        least: share that must be free for a session to start, above 0.
    """
    if free < least:
        return 0
    if density == 1:
        return 1
    return math.floor(math.log(least / free) / math.log1p(-density)) + 1


def admit(network: MaskedNetwork, settings: SupermaskSettings) -> dict[str, float]:
    """Decide the layer densities of the next session, or that there is no room for it.

    Raises:
        CapacityExhausted: an `exssnet` session finds fewer free weights than it must, and may not, or
            cannot, make up for it with a denser mask.
    """
    densities = layer_densities(network, settings)
    if settings.method != "exssnet":
        return densities
    report = capacity(network, settings)
    free = report.free_share
    if free > 0 and free >= settings.least_free:
        return densities
    found = (
        f"session {report.sessions} finds {free:.4%} of the weights free, least_free is "
        f"{settings.least_free:.4%}"
    )
    if settings.when_full == "refuse" or free == 0:
        raise CapacityExhausted(
            f"{found}: start a wider network, lower density (now {settings.density}) from the first session, "
            "choose when_full 'densify' while some are free, or method 'supsup', which needs none"
        )
    factor = settings.least_free / free
    wanted = overall_density(network, densities) * factor
    if wanted > settings.max_density:
        raise CapacityExhausted(
            f"{found}: to make up for it the mask would need density {wanted:.4f}, max_density is "
            f"{settings.max_density}: start a wider network or raise max_density"
        )
    return {name: min(1.0, density * factor) for name, density in densities.items()}
