"""The address file: written, read, and never believed when the daemon is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.address import ADDRESS_FILE, read_address, remove_address, write_address


def test_written_and_read(tmp_path: Path) -> None:
    """A running daemon is found, with its process."""
    write_address(tmp_path, "127.0.0.1", 8080)
    assert read_address(tmp_path) == {"host": "127.0.0.1", "port": 8080, "pid": os.getpid()}
    assert [p.name for p in tmp_path.iterdir()] == [ADDRESS_FILE]


def test_removed(tmp_path: Path) -> None:
    """After a stop there is no address; removing it twice is harmless."""
    write_address(tmp_path, "127.0.0.1", 8080)
    remove_address(tmp_path)
    remove_address(tmp_path)
    assert read_address(tmp_path) is None


def test_a_killed_daemon_is_not_believed(tmp_path: Path) -> None:
    """Its file is still there, its process is not."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / ADDRESS_FILE).write_text(json.dumps({"host": "h", "port": 1, "pid": gone.pid}))
    assert read_address(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": null}', '{"pid": "x"}'])
def test_a_damaged_file_is_no_address(tmp_path: Path, content: str) -> None:
    """Whatever is in the file, the answer is that no daemon runs."""
    (tmp_path / ADDRESS_FILE).write_text(content)
    assert read_address(tmp_path) is None


def test_a_daemon_of_another_user_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not being allowed to signal a process means that it exists."""

    def refuse(pid: int, number: int) -> None:
        raise PermissionError("not yours")

    write_address(tmp_path, "127.0.0.1", 8080)
    monkeypatch.setattr(os, "kill", refuse)
    address = read_address(tmp_path)
    assert address is not None
    assert address["port"] == 8080


def test_an_unreadable_file_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state directory of another user gives no address instead of a fault."""

    def refuse(path: Path) -> str:
        raise PermissionError(f"{path}: not yours")

    write_address(tmp_path, "127.0.0.1", 8080)
    monkeypatch.setattr(Path, "read_text", refuse)
    assert read_address(tmp_path) is None
