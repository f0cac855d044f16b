"""What a generation consists of, and the digest that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cl_engine.masks.packing import pack

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ClassEntry:
    """One row of a generation's class table.

    Attributes:
        id: permanent class id.
        label: the label as it arrived on the stream.
        session: the session that introduced the class.
    """

    id: int
    label: str
    session: int


@dataclass(frozen=True, eq=False)
class Generation:
    """An immutable servable artefact, named by the digest of what decides its answers.

    The digest covers the method, the backbone, the settings, the class table, every tensor and every
    mask. It leaves out the learner state (what only the next session needs), the evaluation, the
    certificate and the provenance: they describe the generation and do not change what it answers.

    Attributes:
        method: name of the learner that made it and can serve it.
        backbone: id of the frozen network, with input size and weights digest.
        session: 0-based session that made it.
        settings: JSON-able settings that the servable reads (preprocessing, blocks, inference mode).
        classes: the class table, in the order of the score columns: sessions first, then ids.
        tensors: float or integer tensors that serving reads.
        masks: named boolean tensors; bit-packed on disk.
        learner_state: tensors that only the next session reads (Gram matrices, scores).
        evaluation: numbers measured on the holdout.
        certificate: what the learner proved about earlier sessions.
        provenance: which offsets taught which class; filled in by whoever owns the stream.
        parent: digest of the generation it was built from.
    """

    method: str
    backbone: str
    session: int
    settings: Mapping[str, Any]
    classes: tuple[ClassEntry, ...]
    tensors: Mapping[str, Tensor]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    learner_state: Mapping[str, Tensor] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    certificate: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    parent: str | None = None

    def __post_init__(self) -> None:
        for name, mask in self.masks.items():
            if mask.dtype != torch.bool:
                raise ValueError(f"mask {name!r} must be boolean, is {mask.dtype}")

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Permanent class ids in the order of the class table."""
        return tuple(entry.id for entry in self.classes)

    @cached_property
    def digest(self) -> str:
        """Sha256 of the content, as 64 hexadecimal digits."""
        return content_digest(self)


def described(generation: Generation) -> dict[str, Any]:
    """Return the JSON part of what the digest covers."""
    return {
        "format": FORMAT_VERSION,
        "method": generation.method,
        "backbone": generation.backbone,
        "session": generation.session,
        "settings": dict(generation.settings),
        "classes": [[entry.id, entry.label, entry.session] for entry in generation.classes],
    }


def content_digest(generation: Generation) -> str:
    """Hash the described content, then each tensor's name, type, shape and bytes in name order."""
    digest = hashlib.sha256()
    digest.update(json.dumps(described(generation), sort_keys=True, separators=(",", ":")).encode())
    named = {f"tensor/{name}": tensor for name, tensor in generation.tensors.items()}
    named |= {f"mask/{name}": mask for name, mask in generation.masks.items()}
    for name in sorted(named):
        shape, dtype = tuple(named[name].shape), named[name].dtype
        tensor = pack(named[name]) if name.startswith("mask/") else named[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {dtype} {shape}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
