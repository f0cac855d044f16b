"""One thread with one owner: started, stopped, joined, with a heartbeat and a back-off."""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod

import structlog

from daemon.backoff import Backoff
from daemon.clock import Clock
from daemon.errors import StreamError

log = structlog.get_logger(__name__)


class OwnerThread(ABC):
    """Owns a thread that takes one turn after another until it is told to stop.

    A subclass says what a turn is. A trouble that passes with time is told once, however often it comes in
    a row, and waited out with growing delays. Everything else ends the thread: `failed` shows the daemon
    why, which then ends as well and leaves the next attempt to its keeper.

    Attributes:
        heartbeat: `Clock.monotonic` at the beginning of the latest turn.
        failed: what ended the thread although nobody asked it to, None while all is well.

    Args:
        name: the thread's name, of what it does and for which stream.
        clock: time.
        random_source: jitter of the waits after a trouble.
    """

    passing: tuple[type[Exception], ...] = (StreamError,)
    """Troubles that pass with time."""

    def __init__(self, name: str, clock: Clock, random_source: random.Random | None = None) -> None:
        self.name = name
        self._clock = clock
        self._backoff = Backoff(random_source or random.Random())
        self._trouble = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.heartbeat = clock.monotonic()
        self.failed: BaseException | None = None

    @abstractmethod
    def work(self) -> float:
        """Do one turn's work and return how long to wait before the next turn, in seconds."""

    def release(self) -> None:  # noqa: B027 - many a thread owns nothing that must be closed
        """Close what the thread owns; called in the thread, at its end."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end after what it is doing."""
        self._stop.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread to end, at most that long (s); return whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def turn(self) -> float:
        """Take one turn and return how long to wait before the next one, in seconds."""
        self.heartbeat = self._clock.monotonic()
        try:
            wait = self.work()
        except self.passing as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.warning("thread.waiting", thread=self.name, error=str(error))
            return self._backoff.delay()
        self._backoff.reset()
        self._trouble = ""
        return wait

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._clock.wait(self._stop, self.turn())
        except Exception as error:
            self.failed = error
            log.exception("thread.failed", thread=self.name, error=str(error))
        finally:
            self.release()
