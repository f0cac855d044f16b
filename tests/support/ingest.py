"""Payloads, records and named fakes around the intake."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence

from PIL import Image

from daemon.errors import SourceUnavailable
from daemon.sources.base import Lag, Message, Place, Record

TOPIC = "labelled"


def image(colour: int = 0, kind: str = "PNG", side: int = 8) -> bytes:
    """Encode a small image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (colour % 256, colour // 256 % 256, 7)).save(buffer, kind)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return the beginning of a PNG file that claims a size and holds next to no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(99)))


def broken_pixels() -> bytes:
    """Return a PNG file whose chunks are all in order and whose compressed pixels are not."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", bytes(99)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def record(message: Message, offset: int = 0, partition: int = 0, timestamp: float = 5.0) -> Record:
    """Put a message into the log, as a source would return it."""
    return Record(TOPIC, partition, offset, message.key, message.value, message.headers, timestamp)


class ScriptedSource:
    """Returns what its script says, poll by poll; an exception is raised; at the end calls `at_end`."""

    def __init__(self, script: Sequence[Sequence[Record] | Exception]) -> None:
        self.script = list(script)
        self.at_end: Callable[[], None] = lambda: None
        self.calls: list[str] = []
        self.started_with: list[Mapping[Place, int]] = []
        self.commits: list[Mapping[Place, int]] = []
        self.start_errors: list[Exception] = []
        self.commit_errors: list[Exception] = []
        self.paused = False
        self.closed = False

    def start(self, stored: Mapping[Place, int]) -> None:
        """Note the offsets, or fail as scripted."""
        self.started_with.append(dict(stored))
        if self.start_errors:
            raise self.start_errors.pop(0)

    def poll(self, timeout: float, max_records: int) -> Sequence[Record]:
        """Return the next step of the script."""
        self.calls.append("poll paused" if self.paused else "poll")
        if self.paused:
            return ()
        if not self.script:
            self.at_end()
            return ()
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def commit(self, next_offsets: Mapping[Place, int]) -> None:
        """Note the offsets, or fail as scripted."""
        self.calls.append("commit")
        if self.commit_errors:
            raise self.commit_errors.pop(0)
        self.commits.append(dict(next_offsets))

    def pause(self) -> None:
        """Return nothing."""
        self.calls.append("pause")
        self.paused = True

    def resume(self) -> None:
        """Return records again."""
        self.calls.append("resume")
        self.paused = False

    def lag(self) -> Mapping[Place, Lag]:
        """Return three records, two seconds."""
        return {Place(TOPIC, 0): Lag(3, 2.0)}

    def stalled(self) -> Sequence[Place]:
        """List none."""
        return ()

    def close(self) -> None:
        """Note it."""
        self.closed = True


class FlakySink:
    """Keeps what it is sent; the first `failures` calls fail."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.sent: list[tuple[str, Message]] = []

    def send(self, topic: str, messages: Sequence[Message]) -> None:
        """Keep the messages, or fail."""
        if self.failures:
            self.failures -= 1
            raise SourceUnavailable("the log is away")
        self.sent += [(topic, message) for message in messages]

    def close(self) -> None:
        """Do nothing."""
