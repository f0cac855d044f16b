"""A real daemon in a process forked from one that has everything imported.

Loading torch takes seconds, and a daemon that is killed a hundred times would spend most of its lives on it.
What it does from its settings on is what `accrete run` does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import httpx
import yaml

from daemon.address import read_address
from tests.support.kafka_broker import die_with_parent

START_SECONDS = 120.0
STOP_SECONDS = 60.0
PRELOADED = ["daemon.app", "daemon.sessions.worker", "tests.support.kill_steps"]


class DaemonEnded(Exception):
    """The daemon ended although nobody asked it to."""


class ForkedDaemon:
    """A daemon that may be started again and again.

    Args:
        directory: takes the configuration and the log.
        settings: the daemon's configuration.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        self.state_directory = Path(settings["state_directory"])
        self.log_path = directory / "daemon.log"
        self._config = directory / "accrete.yaml"
        self._config.write_text(yaml.safe_dump(settings))
        self._process: ForkServerProcess | None = None
        self._pause = threading.Event()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def start(self, *, prepare: Callable[[], None] | None = None, session_seconds: float = 0.0) -> None:
        """Start it.

        Args:
            prepare: called in its process first; must be picklable.
            session_seconds: how long every session takes at least.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        arguments = (self._config, self.log_path, prepare, session_seconds)
        self._process = context.Process(target=_live, args=arguments, daemon=True)
        self._process.start()

    def wait_end(self, seconds: float) -> int | None:
        """Wait for its end; return the exit status, minus the signal's number after one, None if it lives."""
        assert self._process is not None
        self._process.join(seconds)
        return self._process.exitcode

    def wait_ready(self) -> str:
        """Wait until it answers /readyz with 200, and return its address."""
        for _ in range(int(START_SECONDS * 10)):
            self.check()
            address = read_address(self.state_directory)
            if address is not None and address["pid"] == self.pid:
                url = f"http://{address['host']}:{address['port']}"
                try:
                    if httpx.get(f"{url}/readyz").status_code == httpx.codes.OK:
                        return url
                except httpx.HTTPError:
                    pass
            self._pause.wait(0.1)
        raise DaemonEnded(f"not ready within {START_SECONDS:g} s\n{self.tail()}")

    def check(self) -> None:
        """Raise `DaemonEnded` with the end of the log if it was started and has ended."""
        if self._process is not None and self._process.exitcode is not None:
            raise DaemonEnded(f"the daemon ended with status {self._process.exitcode}\n{self.tail()}")

    def kill(self) -> None:
        """Kill it with -9, as a crash would, and wait until it is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.join()

    def stop(self) -> None:
        """Stop it in order; idempotent."""
        process, self._process = self._process, None
        if process is None or process.exitcode is not None:
            return
        process.terminate()
        process.join(STOP_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()

    def tail(self, lines: int = 25) -> str:
        """Return the end of the log."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])


def _live(config: Path, log_path: Path, prepare: Callable[[], None] | None, session_seconds: float) -> None:
    """Be a daemon; runs in the forked process."""
    die_with_parent()
    # The fork server ignores Ctrl-C; a daemon must be as one that a shell started.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log_path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from daemon.app import Daemon
    from daemon.errors import DaemonError
    from daemon.logs import configure_logging
    from daemon.settings import load_settings
    from tests.support import forked_trainer

    settings = load_settings(config)
    configure_logging(settings.log)
    if prepare is not None:
        prepare()
    forked_trainer.use(session_seconds)
    try:
        status = Daemon(settings).run()
    except DaemonError as error:
        # As the command line says it.
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        status = 1
    sys.exit(status)
