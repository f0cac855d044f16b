"""The frozen network."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from daemon.settings.section import Section


class BackboneSettings(Section):
    """The frozen network all streams share."""

    name: str = "vit_small_patch14_dinov2.lvd142m"
    """timm model name, or `all-MiniLM-L6-v2`: then all streams are streams of texts."""
    weights: Path | None = None
    """Local safetensors file of a timm model; empty: the asset catalogue, then timm's hub."""
    image_size: int = Field(default=224, ge=28)
    """Side of the square input, pixels; a multiple of the patch size."""
    max_tokens: int = Field(default=128, ge=3, le=512)
    """Texts are cut to this many tokens, and padded to it; a word is 1.3 tokens on average."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 where the processor or GPU computes with it natively."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads for serving; empty: torch's choice."""
