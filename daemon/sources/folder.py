"""A watched directory with one sub-directory per class, read into the embedded log."""

from __future__ import annotations

import hashlib
import mimetypes
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import structlog

from cl_engine.images import IMAGE_FORMATS
from daemon.clock import Clock
from daemon.errors import SourceUnavailable
from daemon.messages.encode import Item, raw_message
from daemon.messages.formats import TEXT
from daemon.settings import FolderSource as FolderSettings
from daemon.sources.base import Lag, Message, Place, Record
from daemon.sources.embedded import EmbeddedSource
from daemon.sources.log import EmbeddedLog

logger = structlog.get_logger(__name__)

# One poll looks at and appends at most so much: a million files must not hold up the polling.
_FILES_PER_POLL = 500
_BYTES_PER_POLL = 32 * 2**20
# Far above any sensible limits.max_message_bytes; such a file is not read into memory at all.
_MAX_FILE_BYTES = 2**30


class _Version(NamedTuple):
    """What changes when a file is written again."""

    modified_ns: int
    size: int


class _Entry(NamedTuple):
    """A file on its way into the log."""

    path: Path
    version: _Version
    message: Message


class FolderSource:
    """A `Source` that appends every new settled file below `path/LABEL/` to the log and reads it back.

    A file's idempotency key and sample id is the SHA-256 of its path below `path` and its content, so
    a restart that looks at every file again adds nothing, and a file with new content is a new sample.
    Hidden files are left out; so are unreadable ones and those of no known type, with one warning each.
    """

    def __init__(self, settings: FolderSettings, log: EmbeddedLog, topic: str, clock: Clock) -> None:
        self._settings = settings
        self._log = log
        self._topic = topic
        self._clock = clock
        self._reader = EmbeddedSource(log, topic, clock)
        self._paused = False
        # The files that have been dealt with.
        self._seen: dict[Path, _Version] = {}
        self._scan: Iterator[Path] | None = None
        self._next_scan = clock.monotonic()

    def start(self, stored: Mapping[Place, int]) -> None:
        """Go to the stored offsets of the log.

        Raises:
            OffsetGap: a stored offset is no longer in the log.
            SourceUnavailable: the directory is not there, or the log cannot be used now.
        """
        self._check_directory()
        self._reader.start(stored)

    def poll(self, timeout: float, max_records: int) -> Sequence[Record]:
        """Append what is new in the directory, and return the next records.

        Raises:
            SourceUnavailable: the directory is not there, or the log cannot be used now.
        """
        if not self._paused:
            self._look()
        return self._reader.poll(timeout, max_records)

    def commit(self, next_offsets: Mapping[Place, int]) -> None:
        """Count these offsets as consumed."""
        self._reader.commit(next_offsets)

    def pause(self) -> None:
        """Return no more records, and do not look at the directory."""
        self._paused = True
        self._reader.pause()

    def resume(self) -> None:
        """Return records again."""
        self._paused = False
        self._reader.resume()

    def lag(self) -> Mapping[Place, Lag]:
        """Return the lag behind the log; files that were not looked at yet are not known."""
        return self._reader.lag()

    def stalled(self) -> Sequence[Place]:
        """List what the log's reader lists."""
        return self._reader.stalled()

    def close(self) -> None:
        """End a poll that waits; idempotent."""
        self._reader.close()

    def _look(self) -> None:
        if self._scan is None:
            if self._clock.monotonic() < self._next_scan:
                return
            self._check_directory()
            self._scan = _files(self._settings.path)
        batch: list[_Entry] = []
        size = 0
        for _ in range(_FILES_PER_POLL):
            path = next(self._scan, None)
            if path is None:
                self._scan = None
                self._next_scan = self._clock.monotonic() + self._settings.scan_seconds
                break
            entry = self._read(path)
            if entry is not None:
                batch.append(entry)
                size += entry.version.size
            if size >= _BYTES_PER_POLL:
                break
        if batch:
            self._log.append(self._topic, [entry.message for entry in batch])
            # Only now: what could not be appended is looked at again.
            self._seen.update({entry.path: entry.version for entry in batch})

    def _read(self, path: Path) -> _Entry | None:
        """Return a file's message if the file is new, settled and of a known type."""
        version = _Version(0, 0)
        try:
            found = path.stat()
            version = _Version(found.st_mtime_ns, found.st_size)
            if self._seen.get(path) == version or self._is_unsettled(found.st_mtime):
                return None
            content_type = _content_type(path)
            if content_type is None:
                self._skip(path, version, "its extension is of no supported image type or text")
                return None
            if found.st_size > _MAX_FILE_BYTES:
                self._skip(path, version, f"it is larger than {_MAX_FILE_BYTES} bytes")
                return None
            content = path.read_bytes()
            name = path.relative_to(self._settings.path)
            sample_id = hashlib.sha256(str(name).encode() + b"\0" + content).hexdigest()
        except FileNotFoundError:
            # Moved away since the directory was listed.
            return None
        except OSError as error:
            self._skip(path, version, f"it cannot be read: {error}")
            return None
        except UnicodeEncodeError:
            self._skip(path, version, "its name is not UTF-8")
            return None
        message = raw_message(name.parts[0], content_type, Item(content, sample_id))
        return _Entry(path, version, replace(message, idempotency_key=sample_id))

    def _skip(self, path: Path, version: _Version, reason: str) -> None:
        if self._seen.get(path) != version:
            logger.warning("folder.file_skipped", path=str(path), reason=reason)
            self._seen[path] = version

    def _is_unsettled(self, modified: float) -> bool:
        return self._clock.now() - modified < self._settings.settle_seconds

    def _check_directory(self) -> None:
        if not self._settings.path.is_dir():
            raise SourceUnavailable(
                f"source.path {self._settings.path} is not a directory: "
                "create it, with a sub-directory per class"
            )


def _files(root: Path) -> Iterator[Path]:
    """Yield every file below a class directory, hidden ones left out, in a fixed order."""
    for label in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        for directory, subdirectories, names in os.walk(label):
            subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
            yield from (Path(directory, name) for name in sorted(names) if not name.startswith("."))


def _content_type(path: Path) -> str | None:
    # Not strict: the registered list of older Pythons lacks WebP.
    kind, encoding = mimetypes.guess_type(path.name, strict=False)
    return kind if encoding is None and (kind in IMAGE_FORMATS or kind == TEXT) else None
