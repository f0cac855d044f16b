"""Generations on disk: safetensors and a JSON manifest, written atomically, loaded strictly.

    <root>/<digest>/manifest.json         what the generation is, and the sha256 of each file
    <root>/<digest>/serving.safetensors   the tensors that answer
    <root>/<digest>/masks.safetensors     the masks, bit-packed (uint8)
    <root>/<digest>/learner.safetensors   what only the next session reads; may be pruned

A directory under its digest is complete: it is written beside, synced, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cl_engine.errors import CorruptGeneration, UnsupportedGeneration
from cl_engine.generation.content import FORMAT_VERSION, ClassEntry, Generation, described
from cl_engine.masks.packing import pack, unpack

MANIFEST = "manifest.json"
SERVING = "serving.safetensors"
MASKS = "masks.safetensors"
LEARNER = "learner.safetensors"


class GenerationDirectory:
    """A folder of generations, one sub-folder each, named by digest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Return where a generation lies, or would lie."""
        return self.root / digest

    def digests(self) -> list[str]:
        """List the complete generations, sorted by digest."""
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))

    def write(self, generation: Generation) -> str:
        """Write a generation and return its digest; one that is already there is left alone."""
        digest = generation.digest
        target = self.path(digest)
        if target.exists():
            return digest
        temporary = self.root / f".{digest[:16]}-{uuid.uuid4().hex[:8]}"
        temporary.mkdir()
        try:
            packed = {name: pack(mask) for name, mask in generation.masks.items()}
            hashes = {
                SERVING: _save(generation.tensors, temporary / SERVING),
                MASKS: _save(packed, temporary / MASKS),
                LEARNER: _save(generation.learner_state, temporary / LEARNER),
            }
            manifest = described(generation) | {
                "digest": digest,
                "parent": generation.parent,
                "mask_shapes": {name: list(mask.shape) for name, mask in generation.masks.items()},
                "files": hashes,
                "evaluation": dict(generation.evaluation),
                "certificate": dict(generation.certificate),
                "provenance": dict(generation.provenance),
            }
            manifest["checksum"] = _checksum(manifest)
            body = json.dumps(manifest, indent=2, sort_keys=True).encode()
            with (temporary / MANIFEST).open("wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            sync_directory(temporary)
            try:
                temporary.rename(target)
            except OSError:
                # Another writer of the same content was first; content-addressed, so theirs is ours.
                if not target.exists():
                    raise
            sync_directory(self.root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return digest

    def manifest(self, digest: str) -> dict[str, Any]:
        """Read a generation's manifest.

        Raises:
            CorruptGeneration: it is missing, not JSON, or not what was written.
            UnsupportedGeneration: another format version wrote it.
        """
        try:
            manifest = json.loads((self.path(digest) / MANIFEST).read_bytes())
        except (OSError, ValueError) as error:
            raise CorruptGeneration(f"generation {digest}: manifest unreadable: {error}") from error
        if not isinstance(manifest, dict) or "format" not in manifest:
            raise CorruptGeneration(f"generation {digest}: the manifest is no JSON object with a format")
        if manifest["format"] != FORMAT_VERSION:
            raise UnsupportedGeneration(
                f"generation {digest}: format {manifest['format']!r}, this release reads {FORMAT_VERSION}"
            )
        # The digest covers what answers; this covers the rest: certificate, evaluation, provenance.
        if manifest.pop("checksum", None) != _checksum(manifest):
            raise CorruptGeneration(f"generation {digest}: the manifest is not what was written")
        return manifest

    def load(self, digest: str, *, with_learner_state: bool = False) -> Generation:
        """Load and verify a generation.

        Args:
            digest: its name.
            with_learner_state: also load what only the next session needs.

        Raises:
            CorruptGeneration: a file is missing, a tensor is missing or left over, or the content
                does not hash to the digest.
            UnsupportedGeneration: another format version wrote it.
        """
        manifest = self.manifest(digest)
        folder = self.path(digest)
        packed = _load(folder / MASKS, manifest["files"][MASKS])
        shapes: dict[str, list[int]] = manifest["mask_shapes"]
        if packed.keys() != shapes.keys():
            raise CorruptGeneration(
                f"generation {digest}: masks {sorted(packed)} do not match manifest {sorted(shapes)}"
            )
        try:
            masks = {name: unpack(packed[name], shape) for name, shape in shapes.items()}
        except ValueError as error:
            raise CorruptGeneration(f"generation {digest}: {error}") from error
        generation = Generation(
            method=manifest["method"],
            backbone=manifest["backbone"],
            session=manifest["session"],
            settings=manifest["settings"],
            classes=tuple(ClassEntry(*row) for row in manifest["classes"]),
            tensors=_load(folder / SERVING, manifest["files"][SERVING]),
            masks=masks,
            evaluation=manifest["evaluation"],
            certificate=manifest["certificate"],
            provenance=manifest["provenance"],
            parent=manifest["parent"],
        )
        if generation.digest != digest:
            raise CorruptGeneration(f"generation {digest}: content hashes to {generation.digest}")
        if with_learner_state:
            state = _load(folder / LEARNER, manifest["files"][LEARNER])
            generation = replace(generation, learner_state=state)
        return generation

    def prune_learner_state(self, digest: str) -> None:
        """Delete what only a next session would need; the generation still serves."""
        (self.path(digest) / LEARNER).unlink(missing_ok=True)

    def remove(self, digest: str) -> None:
        """Delete a generation that nothing refers to any more."""
        doomed = self.root / f".removed-{digest[:16]}-{uuid.uuid4().hex[:8]}"
        self.path(digest).rename(doomed)
        shutil.rmtree(doomed)

    def clean(self) -> None:
        """Delete what an interrupted write left behind; call only where nobody else writes."""
        for leftover in self.root.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Force a directory's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _save(tensors: Mapping[str, Tensor], path: Path) -> str:
    # Copies: safetensors refuses two tensors of one storage, which a learner may well hand over.
    owned = {
        name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()
    }
    save_file(owned, path)
    with path.open("r+b") as file:
        os.fsync(file.fileno())
    return _sha256(path)


def _load(path: Path, expected: str) -> dict[str, Tensor]:
    try:
        found = _sha256(path)
        if found != expected:
            raise CorruptGeneration(f"{path}: sha256 {found}, the manifest says {expected}")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CorruptGeneration(f"{path}: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
