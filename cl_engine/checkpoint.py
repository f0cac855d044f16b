"""A session's checkpoint: one safetensors file, replaced atomically after every epoch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cl_engine.generation.files import sync_directory

FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors and JSON facts at the end of an epoch."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def save_checkpoint(directory: Path, key: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a kill at any instruction leaves the previous or the new one.

    Args:
        directory: the session's own directory, created if needed.
        key: what the checkpoint belongs to: parent generation, data and settings.
        checkpoint: what to write.
    """
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{FILE}.{os.getpid()}"
    metadata = {"key": key, "facts": json.dumps(dict(checkpoint.facts), sort_keys=True)}
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}, temporary, metadata
    )
    with temporary.open("r+b") as file:
        os.fsync(file.fileno())
    temporary.replace(directory / FILE)
    sync_directory(directory)


def load_checkpoint(directory: Path, key: str) -> Checkpoint | None:
    """Read a checkpoint; None if there is none, it belongs to something else, or it is unreadable.

    An unreadable checkpoint costs the session's epochs so far and nothing else, so it is not an error.
    """
    try:
        with safe_open(directory / FILE, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return Checkpoint(tensors, json.loads(metadata["facts"]))
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


def remove_checkpoint(directory: Path) -> None:
    """Delete a session's checkpoint directory."""
    shutil.rmtree(directory, ignore_errors=True)
