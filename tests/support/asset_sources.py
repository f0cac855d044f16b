"""A registry that is not there: archives made on the spot, downloads counted, failures on demand."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from cl_engine.assets.archives import Members
from cl_engine.assets.asset import Asset, Kind
from cl_engine.errors import AssetError


def zip_of(members: Mapping[str, bytes]) -> bytes:
    """Make a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_of(members: Mapping[str, bytes], links: Mapping[str, str]) -> bytes:
    """Make a gzipped tar archive with files and symbolic links."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            file = tarfile.TarInfo(name)
            file.size = len(content)
            archive.addfile(file, io.BytesIO(content))
        for name, target in links.items():
            link = tarfile.TarInfo(name)
            link.type = tarfile.SYMTYPE
            link.linkname = target
            archive.addfile(link)
    return buffer.getvalue()


class FakeSource:
    """A source that serves given bytes.

    Args:
        content: the archive it serves.
        pinned: what the catalogue says the archive is; by default what is served.
        failures: errors of the first downloads, in order.
        during: called in the middle of each download.
    """

    def __init__(
        self,
        content: bytes,
        *,
        name: str = "fake",
        pinned: bytes | None = None,
        failures: tuple[AssetError, ...] = (),
        during: Callable[[], None] = lambda: None,
        members: tuple[str, ...] = ("*",),
    ) -> None:
        self.content = content
        self.name = name
        self.archive = f"{name}.zip"
        self.sha256 = hashlib.sha256(content if pinned is None else pinned).hexdigest()
        self.size = len(content)
        self.members = members
        self.downloads = 0
        self._failures = list(failures)
        self._during = during

    def describe(self) -> str:
        """Name the source."""
        return f"registry of {self.name}"

    def download(self, directory: Path, on_bytes: Callable[[int], None]) -> Path:
        """Serve the content, or fail as asked."""
        self.downloads += 1
        if self._failures:
            raise self._failures.pop(0)
        self._during()
        on_bytes(len(self.content) // 2)
        path = directory / self.archive
        path.write_bytes(self.content)
        return path


def copy_members(members: Members, directory: Path) -> None:
    """Convert by joining the members, in name order."""
    (directory / "joined").write_bytes(b"".join(members[name] for name in sorted(members)))


def asset_from(
    *sources: FakeSource, convert: Callable[[Members, Path], None] = copy_members, revision: int = 1
) -> Asset:
    """Make a catalogue entry."""
    return Asset(
        name="thing",
        kind=Kind.IMAGES,
        licence="MIT",
        what="a thing",
        sources=sources,
        convert=convert,
        revision=revision,
    )
