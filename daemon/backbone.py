"""The frozen network that the settings ask for."""

from __future__ import annotations

from cl_engine.backbones import Backbone, DecodeLimits, load_backbone
from cl_engine.learners import create
from daemon.errors import ConfigError
from daemon.settings import BackboneSettings, LimitSettings, Settings


def load(settings: BackboneSettings, limits: LimitSettings) -> Backbone:
    """Load the backbone, with bounds on what it decodes.

    Args:
        settings: which one and where; the number of threads is the process's, not the backbone's.
        limits: bounds on payloads.

    Raises:
        AssetError: no source has the weights, or they do not fit the model.
        ValueError: unknown model name, device, or an input size the model cannot take.
    """
    backbone = load_backbone(
        settings.name,
        image_size=settings.image_size,
        max_tokens=settings.max_tokens,
        weights=settings.weights,
        device=settings.device,
        dtype=settings.dtype,
    )
    backbone.limits = DecodeLimits(limits.max_image_pixels, limits.max_text_bytes)
    return backbone


def check_learners(settings: Settings, backbone: Backbone) -> None:
    """Check that every stream's method can work on the backbone, before a session finds out.

    Raises:
        ConfigError: with every mistake, one per line.
    """
    wrong = []
    for name, stream in settings.streams.items():
        try:
            create(stream.learner.method, backbone, stream.learner.options)
        except ValueError as error:
            wrong.append(f"streams.{name}.learner: {error}")
    if wrong:
        raise ConfigError("\n".join(wrong))
