"""The lock on a state directory: one writing daemon per machine."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from daemon.errors import StateLocked


class DirectoryLock:
    """An advisory lock on `directory/lock`, held until `release` or the end of the process.

    Raises:
        StateLocked: another process holds it; the message names that process.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "lock"
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._file, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise StateLocked(
                f"state directory {directory}: process {owner} is using it; stop that daemon, "
                "or give this one a state_directory of its own"
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another process take the lock; idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
