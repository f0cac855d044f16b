"""Where a stream's messages come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from daemon.settings.kafka import KafkaSource
from daemon.settings.section import Section


class EmbeddedSource(Section):
    """The topic log in the state directory: no server, the same offsets and semantics."""

    kind: Literal["embedded"] = "embedded"
    topic: str | None = None
    """Topic to consume; the stream's name if empty."""


class FolderSource(Section):
    """A watched directory with one sub-directory per class."""

    kind: Literal["folder"] = "folder"
    path: Path
    """Directory to watch; each sub-directory's name is a label."""
    scan_seconds: float = Field(default=2.0, gt=0)
    """How often the directory is looked at."""
    settle_seconds: float = Field(default=1.0, ge=0)
    """A file younger than this may still be being written and is left for a later scan."""


SourceSettings = Annotated[EmbeddedSource | FolderSource | KafkaSource, Field(discriminator="kind")]
