"""What the catalogue says about one asset."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cl_engine.assets.archives import Members
from cl_engine.assets.sources import Source

Converter = Callable[[Members, Path], None]
"""Turns an archive's members into our own files in an empty directory; `ValueError` if they are not right."""


class Kind(StrEnum):
    """What an asset is for."""

    BACKBONE = "backbone"
    TEXT_ENCODER = "text_encoder"
    IMAGES = "images"
    TEXTS = "texts"


@dataclass(frozen=True)
class Asset:
    """One entry of the catalogue.

    Attributes:
        name: what callers ask for; timm's full name for a backbone.
        kind: what it is for.
        licence: the upstream's, as far as it is known.
        what: one line for people.
        sources: tried in order; all of them hold the same content.
        convert: makes our files out of the archive's members.
        revision: raised whenever the converter's output changes, so that old caches are not read.
    """

    name: str
    kind: Kind
    licence: str
    what: str
    sources: tuple[Source, ...]
    convert: Converter
    revision: int = 1

    @property
    def directory(self) -> str:
        """Name of the asset's directory in the cache; differs with the pinned content and the converter."""
        pinned = "".join(source.sha256 for source in self.sources) + str(self.revision)
        return f"{self.name}-{hashlib.sha256(pinned.encode()).hexdigest()[:12]}"
