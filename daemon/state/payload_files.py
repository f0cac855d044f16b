"""The samples' payloads, in files beside the database that only grow.

In the database each payload would go to the disk twice, into the write-ahead log and from there into the
table, which halves the rate at which small images can be taken in. Here it goes there once: a sample's row
says where it lies. Payloads are durable before the transaction that refers to them; what a crash leaves
behind without a row is never read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from daemon.errors import StateError

# Files of a size that a backup or a person handles; one is begun after this many bytes.
FILE_BYTES = 256 * 2**20
# What one call may write: IOV_MAX of Linux.
_MAX_BUFFERS = 1024


class Span(NamedTuple):
    """Where a payload lies."""

    file: int
    start: int
    length: int


class PayloadFiles:
    """The payload files of one state directory; any thread may call any method.

    Only the owner of the state appends and erases; readers need no more than the directory.

    Args:
        directory: where the files lie; made with the first payload.
        file_bytes: a file that has grown to this size gets no more payloads.
    """

    def __init__(self, directory: Path, file_bytes: int = FILE_BYTES) -> None:
        self._directory = directory
        self._file_bytes = file_bytes
        self._one_writer = threading.Lock()
        self._number = 0
        self._descriptor: int | None = None

    def append(self, payloads: Sequence[bytes]) -> list[Span]:
        """Write payloads one after another, durably, and return where they lie.

        Raises:
            OSError: the disk is full, or fails.
        """
        if not payloads:
            return []
        with self._one_writer:
            descriptor = self._writable()
            # What lies behind the last row's payload, after a failure or a crash, is passed over.
            start = os.fstat(descriptor).st_size
            spans = []
            for payload in payloads:
                spans.append(Span(self._number, start, len(payload)))
                start += len(payload)
            for first in range(0, len(payloads), _MAX_BUFFERS):
                _write_all(descriptor, payloads[first : first + _MAX_BUFFERS])
            os.fdatasync(descriptor)
            return spans

    def read(self, spans: Sequence[Span]) -> list[bytes]:
        """Return payloads in the order asked for.

        Raises:
            StateError: a file is missing, or shorter than its payloads.
        """
        found: dict[Span, bytes] = {}
        for number in {span.file for span in spans}:
            path = self._path(number)
            try:
                with path.open("rb", buffering=0) as file:
                    for span in spans:
                        if span.file == number:
                            found[span] = os.pread(file.fileno(), span.length, span.start)
            except FileNotFoundError as error:
                raise StateError(
                    f"{path}: the payload file is missing: restore the whole state directory, not the "
                    "database alone"
                ) from error
        for span, payload in found.items():
            if len(payload) != span.length:
                raise StateError(
                    f"{self._path(span.file)}: it ends before byte {span.start + span.length}: restore the "
                    "state directory from one backup"
                )
        return [found[span] for span in spans]

    def erase(self, spans: Iterable[Span]) -> None:
        """Overwrite payloads with zeros, durably; their bytes are gone, their place is not reused.

        Raises:
            OSError: a file cannot be written.
        """
        files: dict[int, list[Span]] = {}
        for span in spans:
            files.setdefault(span.file, []).append(span)
        for number, erased in files.items():
            descriptor = os.open(self._path(number), os.O_WRONLY)
            try:
                for span in erased:
                    os.pwrite(descriptor, bytes(span.length), span.start)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Close the file that was appended to; idempotent."""
        with self._one_writer:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _writable(self) -> int:
        if self._descriptor is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._number = max((int(path.stem) for path in self._directory.glob("*.bin")), default=1)
        elif os.fstat(self._descriptor).st_size < self._file_bytes:
            return self._descriptor
        else:
            os.close(self._descriptor)
            self._descriptor = None
            self._number += 1
        self._descriptor = os.open(
            self._path(self._number), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        # A new file's name is durable only with its directory.
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return self._descriptor

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08}.bin"


def _write_all(descriptor: int, buffers: Sequence[bytes]) -> None:
    """Write from where the buffers lie: copying them together first costs as much as the write."""
    written, total = os.writev(descriptor, buffers), sum(map(len, buffers))
    if written < total:
        # A signal came in between, or the disk is all but full.
        rest = memoryview(b"".join(buffers))[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]
