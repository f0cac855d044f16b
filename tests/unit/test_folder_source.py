"""The watched directory as a source."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.errors import SourceUnavailable
from daemon.messages.parse import parse_record
from daemon.metrics import Metrics
from daemon.settings import FolderSource as FolderSettings
from daemon.settings import LimitSettings, LogSettings
from daemon.sources import open_source
from daemon.sources.base import Place, Record, Source
from daemon.sources.embedded import EmbeddedLog
from tests.support.ingest import image
from tests.support.manual_clock import ManualClock

NOW = 1_000_000.0
PLACE = Place("pets", 0)


class Folder:
    """A watched directory whose files are as old as a test wants."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "classes"
        self.root.mkdir()
        self.clock = ManualClock(NOW)
        self.log = EmbeddedLog(directory / "topics.db", self.clock)

    def write(self, name: str, content: bytes, age: float = 60.0) -> Path:
        """Write a file that was last changed so long ago (s)."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        modified = self.clock.now() - age
        os.utime(path, (modified, modified))
        return path

    def source(self, stored: dict[Place, int] | None = None) -> Source:
        """Open and start the source."""
        source = open_source(
            "pets", FolderSettings(path=self.root), self.log, self.clock, Metrics(), LogSettings()
        )
        source.start(stored or {})
        return source


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """Make an empty directory to watch."""
    folder = Folder(tmp_path)
    yield folder
    folder.log.close()


def labels(records: object) -> list[tuple[str, str]]:
    """Return label and content type of each record."""
    assert isinstance(records, list)
    return [(r.headers["label"].decode(), r.headers["content-type"].decode()) for r in records]


def test_files_become_samples(folder: Folder) -> None:
    """The directory is the label, at any depth; the parser accepts what comes."""
    folder.write("cat/a.png", image(1))
    folder.write("cat/deep/b.jpg", image(2, "JPEG"))
    folder.write("dog/c.webp", image(3, "WEBP"))
    folder.write("dog/d.txt", b"woof")
    records = folder.source().poll(0.0, 10)
    assert labels(records) == [
        ("cat", "image/png"),
        ("cat", "image/jpeg"),
        ("dog", "image/webp"),
        ("dog", "text/plain"),
    ]
    parsed = [parse_record(r, LimitSettings(), None) for r in records if isinstance(r, Record)]
    assert [len(p.samples) for p in parsed] == [1, 1, 1, 1]
    assert len({p.samples[0].id for p in parsed}) == 4


def test_a_file_counts_once_and_its_new_content_again(folder: Folder) -> None:
    """Neither a later scan nor a restart repeats it; a rewritten file is a new sample."""
    folder.write("cat/a.png", image(1))
    source = folder.source()
    assert len(source.poll(0.0, 10)) == 1
    folder.clock.advance(5.0)
    assert source.poll(0.0, 10) == []
    source = folder.source({PLACE: 1})
    assert source.poll(0.0, 10) == []
    folder.write("cat/a.png", image(2), age=30.0)
    folder.clock.advance(5.0)
    assert [r.offset for r in source.poll(0.0, 10)] == [1]


def test_equal_content_in_two_files_is_two_samples(folder: Folder) -> None:
    """The path is part of the id."""
    folder.write("cat/a.png", image(1))
    folder.write("cat/b.png", image(1))
    assert len({r.headers["id"] for r in folder.source().poll(0.0, 10)}) == 2


def test_a_file_must_settle(folder: Folder) -> None:
    """A file changed less than settle_seconds ago may be half written and waits for a later scan."""
    folder.write("cat/a.png", image(1), age=0.5)
    source = folder.source()
    assert source.poll(0.0, 10) == []
    folder.clock.advance(2.0)
    assert len(source.poll(0.0, 10)) == 1


def test_the_directory_is_looked_at_every_scan_seconds(folder: Folder) -> None:
    """Not at every poll."""
    source = folder.source()
    source.poll(0.0, 10)
    folder.write("cat/a.png", image(1))
    folder.clock.advance(1.9)
    assert source.poll(0.0, 10) == []
    folder.clock.advance(0.2)
    assert len(source.poll(0.0, 10)) == 1


def test_what_cannot_be_read_is_skipped_with_one_warning(folder: Folder) -> None:
    """An unknown extension and an unreadable file are named once; hidden files are left in peace."""
    folder.write("cat/notes.pdf", b"x")
    folder.write("cat/.hidden.png", image(1))
    folder.write(".git/a.png", image(1))
    folder.write("cat/good.png", image(2))
    (folder.root / "loose.png").write_bytes(image(3))
    (folder.root / "cat" / "loop.png").symlink_to("loop.png")
    with capture_logs() as logs:
        source = folder.source()
        assert labels(source.poll(0.0, 10)) == [("cat", "image/png")]
        folder.clock.advance(5.0)
        source.poll(0.0, 10)
    skipped = [(Path(entry["path"]).name, entry["reason"]) for entry in logs]
    assert [name for name, _ in skipped] == ["loop.png", "notes.pdf"]
    assert "cannot be read" in skipped[0][1]
    assert "extension" in skipped[1][1]


def test_a_large_directory_is_read_in_pieces(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """One poll looks at a bounded number of files; the next ones go on."""
    monkeypatch.setattr("daemon.sources.folder._FILES_PER_POLL", 4)
    for n in range(10):
        folder.write(f"cat/{n}.png", image(n))
    source = folder.source()
    assert [len(source.poll(0.0, 100)) for _ in range(4)] == [4, 4, 2, 0]


def test_a_paused_source_looks_at_nothing(folder: Folder) -> None:
    """Until it is resumed."""
    folder.write("cat/a.png", image(1))
    source = folder.source()
    source.pause()
    assert source.poll(0.0, 10) == []
    assert folder.log.end_offset("pets") == 0
    source.resume()
    assert len(source.poll(0.0, 10)) == 1


def test_a_missing_directory_is_unavailable(folder: Folder) -> None:
    """At the start and later, with the remedy; it may come back."""
    source = folder.source()
    source.poll(0.0, 10)
    folder.root.rmdir()
    folder.clock.advance(5.0)
    with pytest.raises(SourceUnavailable, match="is not a directory: create it"):
        source.poll(0.0, 10)
    with pytest.raises(SourceUnavailable):
        folder.source()
    folder.write("cat/a.png", image(1))
    assert len(source.poll(0.0, 10)) == 1
