"""A real daemon process with a small real backbone, and what tests ask of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from daemon.clock import SystemClock
from daemon.demo.images import CONTENT_TYPE
from daemon.demo.process import DaemonProcess
from daemon.messages.encode import Item, arrow_class_batch
from daemon.sources.base import Message
from daemon.sources.log import EmbeddedLog

STREAM = "cifar10"
# The smallest size at which the backbone still tells CIFAR-10's classes apart well enough for a test.
IMAGE_SIZE = 56

Labels = frozenset[tuple[str, str]]


def daemon_settings(state_directory: Path, *, epochs: int = 1, **stream: Any) -> dict[str, Any]:
    """Return a configuration whose sessions take a few seconds.

    Args:
        state_directory: of the daemon.
        epochs: of each of the learner's two phases.
        stream: sections that replace the stream's.
    """
    options = {"adapter_blocks": 1, "feature_blocks": 1, "explore_epochs": epochs, "compact_epochs": epochs}
    return {
        "state_directory": str(state_directory),
        "backbone": {"image_size": IMAGE_SIZE},
        "streams": {
            STREAM: {
                "learner": {"method": "sgds", "options": options},
                "trigger": {"min_samples_per_class": 10, "quiet_seconds": 0.5, "max_wait_seconds": 60.0},
                "gate": {"max_accuracy_drop": 1.0, "max_forgetting": 1.0},
                **stream,
            }
        },
        "serving": {"port": 0},
        "log": {"format": "json"},
    }


class RunningDaemon:
    """A daemon in a directory of its own.

    Args:
        directory: takes the configuration, the state and the log.
        settings: of the daemon; `daemon_settings` if None.
    """

    def __init__(self, directory: Path, settings: dict[str, Any] | None = None) -> None:
        self.directory = directory
        self.config = directory / "accrete.yaml"
        self.process = DaemonProcess(directory, settings or daemon_settings(directory / "state"))
        self._pause = threading.Event()

    @property
    def url(self) -> str:
        """Address of the service."""
        return self.process.url

    def start(self) -> None:
        """Start and wait until it is ready."""
        self.process.start()
        self.process.wait_ready(self._pause)

    def __enter__(self) -> RunningDaemon:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()

    def get(self, what: str) -> Any:
        """Read something of the stream."""
        response = httpx.get(f"{self.url}/v1/streams/{STREAM}/{what}", timeout=30.0)
        response.raise_for_status()
        return response.json()

    def post(self, what: str, body: Any = None) -> Any:
        """Change something of the stream."""
        response = httpx.post(f"{self.url}/v1/streams/{STREAM}/{what}", json=body, timeout=30.0)
        response.raise_for_status()
        return response.json()

    def classify(self, payload: bytes) -> Mapping[str, Any]:
        """Ask for one image's class."""
        response = httpx.post(
            f"{self.url}/v1/streams/{STREAM}/classify",
            content=payload,
            headers={"content-type": CONTENT_TYPE},
            timeout=30.0,
        )
        response.raise_for_status()
        answer: Mapping[str, Any] = response.json()
        return answer

    def metrics(self) -> dict[str, dict[Labels, float]]:
        """Return every sample of /metrics, by name and by labels."""
        found: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text):
            for sample in family.samples:
                found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
        return found

    def sample(self, name: str, **labels: str) -> float:
        """Return one series of the stream from /metrics."""
        return self.metrics()[name][frozenset({"stream": STREAM, **labels}.items())]

    def append(self, messages: Sequence[Message]) -> None:
        """Append to the stream's topic as another process would."""
        log = EmbeddedLog(self.directory / "state" / "topics.db", SystemClock())
        try:
            log.append(STREAM, messages)
        finally:
            log.close()

    def produce(self, images: Mapping[str, Sequence[bytes]]) -> int:
        """Append a class batch per class; return the number of samples."""
        self.append(
            [arrow_class_batch(name, CONTENT_TYPE, [Item(p) for p in rows]) for name, rows in images.items()]
        )
        return sum(len(rows) for rows in images.values())

    def wait(self, reached: Callable[[Mapping[str, Any]], bool], seconds: float = 120.0) -> Mapping[str, Any]:
        """Wait until the stream's status is as wanted, and return it."""
        deadline = time.monotonic() + seconds
        status: Mapping[str, Any] = {}
        while time.monotonic() < deadline:
            self.process.check()
            status = self.get("status")
            if reached(status):
                return status
            self._pause.wait(0.05)
        raise AssertionError(f"not reached within {seconds:g} s: {status}\n{self.process.tail(30)}")

    def wait_live(self, number: int) -> Mapping[str, Any]:
        """Wait until a generation is live and no session runs."""
        return self.wait(
            lambda s: s["live"] is not None and s["live"]["number"] == number and s["session"] is None
        )

    def worker(self) -> psutil.Process:
        """Return the trainer process."""
        [child] = psutil.Process(self.process.pid).children()
        return child
