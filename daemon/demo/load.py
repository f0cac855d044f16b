"""The demo's client: asks without stop and keeps count of every answer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from daemon.demo.images import CONTENT_TYPE

TIMEOUT_SECONDS = 30.0


@dataclass
class LoadReport:
    """What the client saw.

    Attributes:
        requests: sent since the service first had a generation.
        failed: those without a correct HTTP answer, with the reasons.
        first_correct: class to the monotonic time of its first correct answer.
        generations: numbers of the generations that answered.
        seconds: latency of each answered request.
    """

    requests: int = 0
    failed: list[str] = field(default_factory=list)
    first_correct: dict[str, float] = field(default_factory=dict)
    generations: set[int] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)


class LoadClient:
    """A thread that sends test images of every class, known or not, at a constant rate.

    Args:
        url: address of the service.
        stream: which stream.
        images: encoded test images by class.
        rate: requests per second.
        seed: orders the requests.
    """

    def __init__(
        self, url: str, stream: str, images: Mapping[str, Sequence[bytes]], rate: float, seed: int
    ) -> None:
        self.report = LoadReport()
        self._url = url
        self._path = f"/v1/streams/{stream}/classify"
        self._ready_path = f"/v2/models/{stream}/ready"
        self._images = [(name, image) for name, images_ in images.items() for image in images_]
        random.Random(seed).shuffle(self._images)
        self._interval = 1.0 / rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-load", daemon=True)

    def start(self) -> None:
        """Start asking as soon as the service has its first generation."""
        self._thread.start()

    def stop(self) -> LoadReport:
        """Stop and return the report."""
        self._stop.set()
        self._thread.join()
        return self.report

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=TIMEOUT_SECONDS) as http:
            while not self._stop.is_set() and not self._is_ready(http):
                self._stop.wait(0.1)
            turn = 0
            due = time.monotonic()
            while not self._stop.is_set():
                self._ask(http, *self._images[turn % len(self._images)])
                turn += 1
                # A constant rate, not a constant pause: a slow answer is followed by a prompt question.
                due = max(due + self._interval, time.monotonic() - 1.0)
                self._stop.wait(max(0.0, due - time.monotonic()))

    def _is_ready(self, http: httpx.Client) -> bool:
        try:
            return http.get(self._ready_path).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _ask(self, http: httpx.Client, name: str, image: bytes) -> None:
        report = self.report
        report.requests += 1
        started = time.perf_counter()
        try:
            response = http.post(self._path, content=image, headers={"content-type": CONTENT_TYPE})
        except httpx.HTTPError as error:
            report.failed.append(f"{type(error).__name__}: {error}")
            return
        if response.status_code != httpx.codes.OK:
            report.failed.append(f"{response.status_code}: {response.text[:200]}")
            return
        report.seconds.append(time.perf_counter() - started)
        answer = response.json()
        report.generations.add(int(answer["generation_number"]))
        if answer["label"] == name and name not in report.first_correct:
            report.first_correct[name] = time.monotonic()
