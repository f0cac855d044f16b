"""The daemon's side of the trainer process: start it, give it jobs, hear its events, notice its death."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from queue import Empty, Queue
from typing import IO, Protocol

import structlog
from pydantic import ValidationError

from daemon.sessions.job import EVENTS, DoneEvent, Event, FailedEvent, Job, UnreadableEvent
from daemon.settings import LogSettings, TrainerSettings

log = structlog.get_logger(__name__)

# A trainer ends by itself when its input closes; after this long it hangs in a system call.
_END_SECONDS = 5.0

COMMAND = (sys.executable, "-m", "daemon.sessions.worker")


class Trainer(Protocol):
    """Runs one job at a time somewhere else than in the serving process."""

    def submit(self, job: Job) -> None:
        """Begin a job; the previous one must have ended."""
        ...

    def events(self, timeout: float) -> list[Event]:
        """Return what was heard since the last call, waiting at most `timeout` seconds for the first."""
        ...

    def crashed(self) -> str | None:
        """Return why the running job will never end, None while it may."""
        ...

    def release(self) -> None:
        """Free what an idle trainer holds."""
        ...

    def stop(self) -> None:
        """End the job, if one runs, and the trainer; idempotent."""
        ...


class TrainerProcess:
    """A child process that trains; a crash or an out-of-memory there never touches serving.

    Owned by one thread. The process is started with the first job and kept for the next one.

    Args:
        settings: niceness.
        log_settings: passed on, so that its log lines look like the daemon's.
        command: what to start; tests give another.
    """

    def __init__(
        self, settings: TrainerSettings, log_settings: LogSettings, command: Sequence[str] = COMMAND
    ) -> None:
        self._settings = settings
        # Waiting threads that spin take the cores from serving, which shares them with the trainer.
        self._environment = {
            "OMP_WAIT_POLICY": "PASSIVE",
            **os.environ,
            "ACCRETE_TRAINER_LOG": log_settings.model_dump_json(),
        }
        self._command = list(command)
        self._process: subprocess.Popen[str] | None = None
        self._events: Queue[Event] = Queue()
        self._listener: threading.Thread | None = None
        self._busy = False

    @property
    def pid(self) -> int | None:
        """Process id, None while there is no process."""
        return None if self._process is None else self._process.pid

    def submit(self, job: Job) -> None:
        """Send a job, starting the process if there is none."""
        assert not self._busy, "a job is running"
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(job.model_dump_json() + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # It died between the check and the write; `crashed` says so.
            log.warning("trainer.gone", pid=self._process.pid)
        self._busy = True

    def events(self, timeout: float) -> list[Event]:
        """Return what was heard since the last call, waiting for the first at most `timeout` seconds."""
        heard: list[Event] = []
        try:
            heard.append(self._events.get(timeout=timeout))
            while True:
                heard.append(self._events.get_nowait())
        except Empty:
            pass
        if any(isinstance(event, DoneEvent | FailedEvent | UnreadableEvent) for event in heard):
            self._busy = False
        return heard

    def crashed(self) -> str | None:
        """Return how the process ended if it did so while a job ran."""
        if not self._busy or self._process is None or self._process.poll() is None:
            return None
        assert self._listener is not None
        # What it said before it ended may still be in the pipe; a result among it counts.
        self._listener.join(_END_SECONDS)
        if not self._events.empty():
            return None
        code = self._process.returncode
        self._busy = False
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def release(self) -> None:
        """End an idle process and give its memory back."""
        if not self._busy:
            self.stop()

    def stop(self) -> None:
        """End the process; a running job is left at its last checkpoint."""
        process, self._process = self._process, None
        self._busy = False
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def _start(self) -> None:
        self.stop()
        niceness = self._settings.niceness
        command = ["nice", "-n", str(niceness), *self._command] if niceness else self._command
        self._events = Queue()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A line that is no UTF-8 is unreadable like any other; it must not end the listener.
            encoding="utf-8",
            errors="replace",
            env=self._environment,
        )
        assert self._process.stdout is not None
        self._listener = threading.Thread(
            target=_listen, args=(self._process.stdout, self._events), name="trainer-events", daemon=True
        )
        self._listener.start()
        log.info("trainer.started", pid=self._process.pid, niceness=niceness)


def _listen(pipe: IO[str], events: Queue[Event]) -> None:
    try:
        for line in pipe:
            try:
                events.put(EVENTS.validate_json(line))
            except ValidationError as error:
                log.warning("trainer.unreadable_event", line=line[:200], error=str(error))
    except ValueError:
        # The pipe was closed by `stop` while this thread was reading.
        return
