"""Generations: what names them, how they are written, and what is refused when they are read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cl_engine.errors import CorruptGeneration, UnsupportedGeneration
from cl_engine.generation import ClassEntry, Generation, GenerationDirectory
from cl_engine.generation import files as generation_files
from tests.support.made_generations import made_generation

FILES = ("manifest.json", "serving.safetensors", "masks.safetensors", "learner.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"learner_state": {"gram": torch.zeros(1)}},
        {"evaluation": {"a_t": 0.9}},
        {"certificate": {"holds": False}},
        {"provenance": {}},
        {"parent": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_only_describes_a_generation_does_not_name_it(change: dict[str, Any]) -> None:
    """The same answers have the same digest, whatever was measured or proved about them."""
    assert made_generation(**change).digest == made_generation().digest


@pytest.mark.parametrize(
    "change",
    [
        {"method": "ncm"},
        {"backbone": "other"},
        {"session": 2},
        {"settings": {"scale": 2.0}},
        {"classes": (ClassEntry(0, "cat", 0), ClassEntry(4, "dog", 1))},
        {"classes": (ClassEntry(4, "dög", 1), ClassEntry(0, "cat", 0))},
        {"tensors": {"head": torch.arange(6.0).reshape(3, 2), "count": torch.tensor(3)}},
        {"tensors": {"head": torch.arange(6.0).reshape(2, 3).double(), "count": torch.tensor(3)}},
        {"tensors": {"head": torch.arange(6.0).reshape(2, 3)}},
        {"tensors": {"tail": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}},
        {"masks": {"input": torch.tensor([[True, False, True], [False, False, False]])}},
        {"masks": {"input": torch.tensor([[True, False], [True, False], [False, True]])}},
    ],
    ids=range(12),
)
def test_everything_that_decides_an_answer_names_it(change: dict[str, Any]) -> None:
    """Method, backbone, session, settings, class table, and each tensor's and mask's name, shape, value."""
    assert made_generation(**change).digest != made_generation().digest


def test_a_mask_must_be_boolean() -> None:
    """The error names the mask."""
    with pytest.raises(ValueError, match="mask 'input' must be boolean"):
        made_generation(masks={"input": torch.ones(2)})


def assert_same(one: Generation, other: Generation) -> None:
    """Compare everything but the learner state."""
    for name in ("method", "backbone", "session", "settings", "classes"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("evaluation", "certificate", "provenance", "parent"):
        assert getattr(one, name) == getattr(other, name)
    for ours, theirs in ((one.tensors, other.tensors), (one.masks, other.masks)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """With the learner state where it is asked for, under the digest as its name."""
    directory, generation = GenerationDirectory(tmp_path / "generations"), made_generation()
    digest = directory.write(generation)
    assert digest == generation.digest
    assert directory.digests() == [digest]
    plain = directory.load(digest)
    assert_same(plain, generation)
    assert plain.learner_state == {}
    complete = directory.load(digest, with_learner_state=True)
    assert torch.equal(complete.learner_state["gram"], generation.learner_state["gram"])


def test_tensors_of_one_storage_are_written(tmp_path: Path) -> None:
    """Two views of one tensor are two tensors on disk."""
    both = torch.arange(4.0).reshape(2, 2)
    directory = GenerationDirectory(tmp_path)
    digest = directory.write(made_generation(tensors={"first": both[0], "second": both[1], "all": both}))
    assert directory.load(digest).tensors["second"].tolist() == [2.0, 3.0]


def test_the_same_content_is_written_once(tmp_path: Path) -> None:
    """A second write changes no file: whoever was first described it."""
    directory = GenerationDirectory(tmp_path)
    digest = directory.write(made_generation())
    directory.write(made_generation(evaluation={"a_t": 0.1}))
    assert directory.load(digest).evaluation == {"a_t": 0.5}
    assert [p.name for p in tmp_path.iterdir()] == [digest]


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    """One bit in any byte of any file makes the generation unusable."""
    directory = GenerationDirectory(tmp_path)
    path = directory.path(directory.write(made_generation())) / name
    original = path.read_bytes()
    for place in range(0, len(original), 7):
        damaged = bytearray(original)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        if name == "manifest.json" and _same_json(damaged, original):
            continue  # a blank became another blank
        with pytest.raises((CorruptGeneration, UnsupportedGeneration)):
            directory.load(path.parent.name, with_learner_state=True)


def _same_json(one: bytes | bytearray, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(tmp_path: Path, name: str) -> None:
    """The error names the generation or the file."""
    directory = GenerationDirectory(tmp_path)
    digest = directory.write(made_generation())
    (directory.path(digest) / name).unlink()
    with pytest.raises(CorruptGeneration, match=digest):
        directory.load(digest, with_learner_state=True)


def test_without_the_learner_state_it_still_serves(tmp_path: Path) -> None:
    """Pruning it leaves everything else; a next session cannot be built on it."""
    directory = GenerationDirectory(tmp_path)
    digest = directory.write(made_generation())
    directory.prune_learner_state(digest)
    assert_same(directory.load(digest), made_generation())
    with pytest.raises(CorruptGeneration):
        directory.load(digest, with_learner_state=True)


def forge(folder: Path, **changes: Any) -> None:
    """Rewrite a manifest as somebody would who keeps its own checksums right."""
    manifest = json.loads((folder / "manifest.json").read_bytes()) | changes
    for name in FILES[1:]:
        manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    del manifest["checksum"]
    manifest["checksum"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("file", ["serving.safetensors", "masks.safetensors"])
def test_a_left_over_tensor_is_found(tmp_path: Path, file: str) -> None:
    """Even where every file has the checksum the manifest gives."""
    directory = GenerationDirectory(tmp_path)
    folder = directory.path(directory.write(made_generation()))
    save_file(
        load_file(folder / file) | {"extra": torch.zeros(1, dtype=torch.uint8)},
        folder / file,
    )
    forge(folder)
    with pytest.raises(CorruptGeneration, match=r"content hashes|do not match manifest"):
        directory.load(folder.name)


@pytest.mark.parametrize("shape", [[3, 2], [6], [2, 4], [4, 4]])
def test_a_mask_of_another_shape_is_found(tmp_path: Path, shape: list[int]) -> None:
    """As many bytes are not enough: the shape is part of the content."""
    directory = GenerationDirectory(tmp_path)
    folder = directory.path(directory.write(made_generation()))
    forge(folder, mask_shapes={"input": shape})
    with pytest.raises(CorruptGeneration):
        directory.load(folder.name)


def test_content_under_another_name_is_found(tmp_path: Path) -> None:
    """A directory that was renamed does not hold what its name says."""
    directory = GenerationDirectory(tmp_path)
    digest = directory.write(made_generation())
    directory.path(digest).rename(tmp_path / ("f" * 64))
    with pytest.raises(CorruptGeneration, match=f"content hashes to {digest}"):
        directory.load("f" * 64)


def test_another_format_is_refused(tmp_path: Path) -> None:
    """The error names both versions, and does not call the generation corrupt."""
    directory = GenerationDirectory(tmp_path)
    folder = directory.path(directory.write(made_generation()))
    forge(folder, format=99)
    with pytest.raises(UnsupportedGeneration, match="format 99, this release reads 1"):
        directory.load(folder.name)


@pytest.mark.parametrize("body", ["", "[]", "{}", "null", '{"format": 1}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, body: str) -> None:
    """Empty, of another type, or without its fields."""
    directory = GenerationDirectory(tmp_path)
    folder = directory.path(directory.write(made_generation()))
    (folder / "manifest.json").write_text(body)
    with pytest.raises(CorruptGeneration):
        directory.load(folder.name)


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["save", "fsync", "rename"])
def test_a_write_cut_short_leaves_no_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whatever the last instruction was, nothing is listed, and the next write succeeds."""

    def die(*_args: object, **_kwargs: object) -> None:
        raise Killed

    directory = GenerationDirectory(tmp_path)
    with monkeypatch.context() as patch:
        # A killed process does not tidy up either.
        patch.setattr(shutil, "rmtree", lambda *_args, **_kwargs: None)
        if step == "save":
            patch.setattr(generation_files, "save_file", die)
        elif step == "fsync":
            patch.setattr(os, "fsync", die)
        else:
            patch.setattr(Path, "rename", die)
        with pytest.raises(Killed):
            directory.write(made_generation())
    assert directory.digests() == []
    assert list(tmp_path.iterdir()) != []
    digest = directory.write(made_generation())
    directory.clean()
    assert [p.name for p in tmp_path.iterdir()] == [digest]
    assert_same(directory.load(digest), made_generation())


def test_losing_the_race_for_one_content_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer of the same content comes between the check and the rename."""
    directory, rename = GenerationDirectory(tmp_path), Path.rename

    def after_the_other(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        GenerationDirectory(tmp_path).write(made_generation())
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", after_the_other)
    digest = directory.write(made_generation())
    assert [p.name for p in tmp_path.iterdir()] == [digest]


def test_a_failed_rename_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full or read-only disk is an error, and nothing is left behind."""

    def refuse(*_args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no space left"):
        GenerationDirectory(tmp_path).write(made_generation())
    assert list(tmp_path.iterdir()) == []


def test_a_removed_generation_is_gone(tmp_path: Path) -> None:
    """It is neither listed nor loadable, and its files are gone."""
    directory = GenerationDirectory(tmp_path)
    digest = directory.write(made_generation())
    directory.remove(digest)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CorruptGeneration):
        directory.load(digest)
