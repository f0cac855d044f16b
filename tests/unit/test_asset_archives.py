"""Reading members out of archives that may be anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from cl_engine.assets.archives import read_members
from cl_engine.errors import AssetError
from tests.support.asset_sources import tar_of, zip_of


@pytest.mark.parametrize("make", [zip_of, lambda members: tar_of(members, {})], ids=["zip", "tar"])
def test_a_hostile_name_never_reaches_the_disk(tmp_path: Path, make) -> None:
    """Members that point out of the archive are read into memory like any other."""
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    archive = inside / "archive"
    outside = str(tmp_path / "absolute")
    archive.write_bytes(make({"../../evil": b"x", outside: b"y", "good": b"z"}))
    before = sorted(tmp_path.rglob("*"))
    assert read_members(archive, ["*"])["good"] == b"z"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_is_not_a_member(tmp_path: Path) -> None:
    """A symbolic link of the wanted name does not make us read another file."""
    archive = tmp_path / "archive.tgz"
    archive.write_bytes(tar_of({"real": b"x"}, {"weights": "/etc/hostname"}))
    with pytest.raises(AssetError, match="no member weights"):
        read_members(archive, ["weights"])


def test_only_wanted_members_are_read(tmp_path: Path) -> None:
    """Names and patterns select; the rest stays in the archive."""
    archive = tmp_path / "archive.whl"
    archive.write_bytes(zip_of({"p/a.gz": b"1", "p/b.gz": b"2", "p/run.py": b"3", "q": b"4"}))
    assert read_members(archive, ["p/*.gz", "q"]) == {"p/a.gz": b"1", "p/b.gz": b"2", "q": b"4"}


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    """The error says which pattern found nothing."""
    archive = tmp_path / "archive.whl"
    archive.write_bytes(zip_of({"a": b"1"}))
    with pytest.raises(AssetError, match=r"archive\.whl has no member b, c\*"):
        read_members(archive, ["a", "b", "c*"])


@pytest.mark.parametrize("name", ["archive.whl", "archive.tgz", "archive.deb"])
@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut", b"\x1f\x8b cut"])
def test_what_is_no_archive_is_said_so(tmp_path: Path, name: str, content: bytes) -> None:
    """Damaged archives are an `AssetError`, whatever the format."""
    archive = tmp_path / name
    archive.write_bytes(content)
    with pytest.raises(AssetError, match=f"{name} is not a readable archive"):
        read_members(archive, ["a"])


def test_a_truncated_tar_is_refused(tmp_path: Path) -> None:
    """Half an archive does not give half a member."""
    archive = tmp_path / "archive.tgz"
    whole = tar_of({"a": bytes(range(256)) * 400}, {})
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AssetError, match="not a readable archive"):
        read_members(archive, ["a"])
