"""The daemon's end of a Kafka source's process: start it, call it, hear what it tells, end it."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from daemon.sources.kafka.frames import Channel, unpack_error

log = structlog.get_logger(__name__)

# What comes from a broker lies in buffers of megabytes. Left to itself, glibc gives their memory back and
# takes it anew, and the first touch of a page costs more than filling it: a class batch of 4 KB images had
# 2.8 page faults an image, with these 0.3. Other C libraries do not read them.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(64 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
}


class ChildGone(Exception):
    """The process has ended, or its connection has."""


class ChildProcess:
    """A process that answers one call at a time; one thread owns it and makes every call.

    Args:
        command: what to start.
        on_notice: told what it says without being asked, from a thread of this object's.
    """

    def __init__(self, command: Sequence[str], on_notice: Callable[[Any], None]) -> None:
        requests, its_requests = socket.socketpair()
        notices, its_notices = socket.socketpair()
        with its_requests, its_notices:
            self._process = subprocess.Popen(
                list(command),
                stdin=its_requests.fileno(),
                stdout=its_notices.fileno(),
                # What the operator has set counts.
                env=ALLOCATOR | dict(os.environ),
            )
        self._requests, self._notices = Channel(requests), Channel(notices)
        self._on_notice = on_notice
        self._listener = threading.Thread(target=self._listen, name="kafka-notices", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def tell(self, message: object) -> None:
        """Send a message; nothing is waited for.

        Raises:
            ChildGone: there is nobody to hear it.
        """
        try:
            self._requests.send(message)
        except OSError as error:
            raise ChildGone from error

    def ask(self, name: str, *arguments: object) -> None:
        """Make a call; nothing is waited for.

        Raises:
            ChildGone: there is nobody to hear it.
        """
        self.tell((name, *arguments))

    def answer(self, timeout: float) -> tuple[Any, memoryview]:
        """Return the answer to the call made last and its blobs, waiting at most so long (s).

        Raises:
            TimeoutError: there is none yet.
            ChildGone: there will be none.
            OffsetGap, SourceUnavailable, ConfigError, StreamError: the call failed so.
        """
        try:
            (outcome, *answer), blobs = self._requests.receive(timeout)
        except TimeoutError:
            raise
        except (EOFError, OSError) as error:
            raise ChildGone from error
        if outcome == "error":
            raise unpack_error(*answer)
        return answer[0], blobs

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most so long."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            log.warning("kafka.process_killed", pid=self.pid, seconds=seconds)

    def hang_up(self) -> None:
        """Close the connection: a process that lives leaves its group and ends by itself."""
        self._requests.close()
        self._notices.close()

    def end(self) -> str:
        """Kill it if it still lives, and say how it ended; idempotent."""
        self._process.kill()
        code = self._process.wait()
        self.hang_up()
        self._listener.join()
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def _listen(self) -> None:
        try:
            while True:
                notice, _ = self._notices.receive()
                self._on_notice(notice)
        except (EOFError, OSError):
            return
