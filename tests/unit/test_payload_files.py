"""The samples' payloads in files: durable, found again, and gone when they are erased."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import StateError
from daemon.state.payload_files import PayloadFiles, Span


@given(st.lists(st.lists(st.binary(max_size=40), max_size=5), max_size=6), st.integers(1, 60))
def test_payloads_come_back_in_the_order_asked_for(
    tmp_path_factory: pytest.TempPathFactory, polls: list[list[bytes]], file_bytes: int
) -> None:
    """However many files they make, and from another process's point of view."""
    directory = tmp_path_factory.mktemp("payloads")
    files = PayloadFiles(directory, file_bytes)
    kept = [(span, payload) for poll in polls for span, payload in zip(files.append(poll), poll, strict=True)]
    files.close()
    kept.reverse()
    assert PayloadFiles(directory).read([span for span, _ in kept]) == [payload for _, payload in kept]


def test_a_file_that_is_full_is_followed_by_another(tmp_path: Path) -> None:
    """One append lies in one file, whatever its size."""
    files = PayloadFiles(tmp_path, file_bytes=4)
    spans = [*files.append([b"abc", b"def"]), *files.append([b"g"])]
    assert spans == [Span(1, 0, 3), Span(1, 3, 3), Span(2, 0, 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001.bin", "00000002.bin"]
    files.close()


def test_what_a_crash_left_behind_is_passed_over(tmp_path: Path) -> None:
    """Bytes that no row refers to stay where they are; the next payload comes after them."""
    files = PayloadFiles(tmp_path)
    [first] = files.append([b"first"])
    files.close()
    with (tmp_path / "00000001.bin").open("ab") as file:
        file.write(b"half of a pay")
    again = PayloadFiles(tmp_path)
    [second] = again.append([b"second"])
    assert second.start == len(b"firsthalf of a pay")
    assert again.read([second, first]) == [b"second", b"first"]
    again.close()


def test_erased_bytes_are_gone_and_the_others_are_not(tmp_path: Path) -> None:
    """They are overwritten in place."""
    files = PayloadFiles(tmp_path)
    spans = files.append([b"keep", b"secret", b"this"])
    files.erase(spans[1:2])
    assert files.read(spans) == [b"keep", bytes(6), b"this"]
    assert b"secret" not in (tmp_path / "00000001.bin").read_bytes()
    files.close()


def test_a_missing_or_cut_file_is_told(tmp_path: Path) -> None:
    """The database alone is no backup."""
    files = PayloadFiles(tmp_path)
    spans = files.append([b"abc", b"def"])
    files.close()
    path = tmp_path / "00000001.bin"
    path.write_bytes(b"abcd")
    assert files.read(spans[:1]) == [b"abc"]
    with pytest.raises(StateError, match="ends before byte 6"):
        files.read(spans)
    path.unlink()
    with pytest.raises(StateError, match="payload file is missing"):
        files.read(spans)


def test_a_write_cut_short_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal may end a call in the middle of a payload; the next payloads follow it all the same."""
    whole = os.writev
    monkeypatch.setattr(os, "writev", lambda descriptor, buffers: whole(descriptor, [b"".join(buffers)[:4]]))
    files = PayloadFiles(tmp_path)
    spans = files.append([b"abc", b"def"])
    monkeypatch.undo()
    spans += files.append([b"g" * n for n in range(1, 1500)])
    assert files.read(spans) == [b"abc", b"def", *(b"g" * n for n in range(1, 1500))]
    files.close()
