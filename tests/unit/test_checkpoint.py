"""Checkpoints: read back, refused, or missing, and replaced at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cl_engine.checkpoint import FILE, Checkpoint, load_checkpoint, remove_checkpoint, save_checkpoint

ONE = Checkpoint({"down": torch.arange(3.0), "step": torch.tensor(7)}, {"epoch": 1, "loss": 0.25})
TWO = Checkpoint({"down": torch.ones(3)}, {"epoch": 2})


def test_a_checkpoint_is_read_back(tmp_path: Path) -> None:
    """Tensors and facts, in a directory that need not exist, and the last one counts."""
    directory = tmp_path / "session" / "7"
    save_checkpoint(directory, "key", ONE)
    found = load_checkpoint(directory, "key")
    assert found is not None
    assert found.facts == ONE.facts
    assert torch.equal(found.tensors["down"], ONE.tensors["down"])
    assert int(found.tensors["step"]) == 7
    save_checkpoint(directory, "key", TWO)
    found = load_checkpoint(directory, "key")
    assert found is not None
    assert found.facts == {"epoch": 2}
    assert [p.name for p in directory.iterdir()] == [FILE]


def test_there_may_be_none(tmp_path: Path) -> None:
    """No directory, or one that was removed."""
    assert load_checkpoint(tmp_path / "nowhere", "key") is None
    save_checkpoint(tmp_path / "session", "key", ONE)
    remove_checkpoint(tmp_path / "session")
    remove_checkpoint(tmp_path / "session")
    assert load_checkpoint(tmp_path / "session", "key") is None


def test_another_session_s_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    """The key says what it belongs to."""
    save_checkpoint(tmp_path, "key", ONE)
    assert load_checkpoint(tmp_path, "other") is None


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    """Cut anywhere, or not a checkpoint at all: the session starts again."""
    save_checkpoint(tmp_path, "key", ONE)
    complete = (tmp_path / FILE).read_bytes()
    for length in range(len(complete)):
        (tmp_path / FILE).write_bytes(complete[:length])
        assert load_checkpoint(tmp_path, "key") is None
    (tmp_path / FILE).write_bytes(b"no checkpoint " * 20)
    assert load_checkpoint(tmp_path, "key") is None


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_kill_while_writing_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Until the rename the old file is the checkpoint."""

    def die(*_args: object) -> None:
        raise Killed

    save_checkpoint(tmp_path, "key", ONE)
    target = "pathlib.Path.replace" if step == "replace" else "os.fsync"
    monkeypatch.setattr(target, die)
    with pytest.raises(Killed):
        save_checkpoint(tmp_path, "key", TWO)
    found = load_checkpoint(tmp_path, "key")
    assert found is not None
    assert found.facts == ONE.facts
