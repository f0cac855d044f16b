"""The demo's daemon: a process of its own, with its log in a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from daemon.address import read_address

START_SECONDS = 180.0
STOP_SECONDS = 30.0


class DemoFailed(Exception):
    """The demo cannot go on; the message says why, for people."""


class DaemonProcess:
    """Starts, watches and stops a daemon.

    Args:
        directory: takes the configuration, the state and the log.
        settings: the daemon's configuration.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        self.state_directory = Path(settings["state_directory"])
        self.log_path = directory / "daemon.log"
        self._config = directory / "accrete.yaml"
        self._config.write_text(yaml.safe_dump(settings))
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def start(self) -> None:
        """Start the daemon; its log goes on in the same file after a restart."""
        with self.log_path.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches the demo, which stops the daemon in order.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "daemon", "run", "--config", str(self._config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self, wait: threading.Event) -> None:
        """Wait until it answers /readyz with 200.

        Raises:
            DemoFailed: it ended, or was not ready in time.
        """
        for _ in range(int(START_SECONDS * 5)):
            self.check()
            address = read_address(self.state_directory)
            if address is not None and address["pid"] == self.pid:
                self.url = f"http://{address['host']}:{address['port']}"
                try:
                    if httpx.get(f"{self.url}/readyz").status_code == httpx.codes.OK:
                        return
                except httpx.HTTPError:
                    pass
            wait.wait(0.2)
        raise DemoFailed(f"the daemon was not ready within {START_SECONDS:g} s\n{self.tail()}")

    def check(self) -> None:
        """Raise `DemoFailed` with the end of the log if the daemon has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise DemoFailed(f"the daemon ended with status {self._process.returncode}\n{self.tail()}")

    def kill(self) -> None:
        """Kill it with -9, as a crash would, and wait until it is gone."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Stop it in order; idempotent."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def events(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the log's events of one name."""
        for line in self.log_path.read_text(errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("event") == name:
                yield event

    def tail(self, lines: int = 15) -> str:
        """Return the end of the log."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])


class MemoryWatch:
    """A thread that notes the largest resident memory of this process and all its children, in bytes.

    Pages that processes share are counted once per process, so the figure is an upper bound.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-memory", daemon=True)

    def start(self) -> None:
        """Start watching, once a second."""
        self._thread.start()

    def stop(self) -> int:
        """Stop and return the peak."""
        self._stop.set()
        self._thread.join()
        return self.peak

    def _run(self) -> None:
        me = psutil.Process()
        while not self._stop.is_set():
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)
            self._stop.wait(1.0)
