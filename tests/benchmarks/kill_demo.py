"""The demo's stream, with `kill -9` of the daemon at random moments: nothing lost, nothing counted twice."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import httpx

from daemon.clock import SystemClock
from daemon.demo.images import CONTENT_TYPE, DemoImages, load_demo_images
from daemon.demo.process import DaemonProcess
from daemon.demo.settings import STREAM, DemoSettings
from daemon.messages.encode import Item, arrow_class_batch
from daemon.sources.log import EmbeddedLog
from daemon.state import SqlState
from tests.benchmarks.frame import parse_options, report

# Samples in one class batch, and how long the producer rests after each: a step's batches come together.
BATCH = 12
BATCH_SECONDS = 0.1
SETTLE_SECONDS = 900.0
# A kill comes after this many times the daemon's own start-up time: some during it, most after it.
GAPS = (0.2, 2.5)


@dataclass(frozen=True)
class Plan:
    """What one run does.

    Attributes:
        demo: sizes, and the learner's seed.
        classes: how many of CIFAR-10's.
        step_seconds: from one group of classes to the next; the producer never waits for the daemon.
        kills: how many.
        seed: of the moments.
    """

    demo: DemoSettings
    classes: int
    step_seconds: float
    kills: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        lost: produced samples that no promoted session and no holdout has.
        duplicated: samples that are there, or were counted, more than once.
        classes_live: how many of the produced classes answer.
        a_t: share of the test images that the service labels rightly.
        start_seconds: from the first process's start until it was ready.
        resumed: sessions that a start took up again.
    """

    lost: int
    duplicated: int
    classes_live: int
    a_t: float
    start_seconds: float
    resumed: int


class Producer(threading.Thread):
    """Writes the classes to the embedded topic group by group, whether a daemon runs or not."""

    def __init__(self, path: Path, images: Mapping[str, Sequence[bytes]], plan: Plan) -> None:
        super().__init__(name="producer", daemon=True)
        self._path, self._images, self._plan = path, images, plan
        self._pause = threading.Event()

    def run(self) -> None:
        """Produce everything once."""
        log = EmbeddedLog(self._path, SystemClock())
        names, step = list(self._images), self._plan.demo.classes_per_session
        try:
            for first in range(0, len(names), step):
                due = time.monotonic() + self._plan.step_seconds
                group = [self._batches(name) for name in names[first : first + step]]
                for turn in zip_longest(*group):
                    log.append(STREAM, [message for message in turn if message is not None])
                    self._pause.wait(BATCH_SECONDS)
                self._pause.wait(max(0.0, due - time.monotonic()))
        finally:
            log.close()

    def _batches(self, name: str) -> list[Any]:
        items = [Item(payload, sample_id(name, n)) for n, payload in enumerate(self._images[name])]
        return [
            arrow_class_batch(name, CONTENT_TYPE, items[i : i + BATCH]) for i in range(0, len(items), BATCH)
        ]


class KillRun:
    """One run of the stream in a directory of its own."""

    def __init__(self, plan: Plan, images: DemoImages, directory: Path) -> None:
        self.plan = plan
        chosen = list(images.train)[: plan.classes]
        self.train = {name: images.train[name] for name in chosen}
        self.test = {name: images.test[name] for name in chosen}
        settings = plan.demo.daemon_settings(directory / "state")
        # What is shown here is what survives; a class that comes alone must not fail on a few images.
        settings["streams"][STREAM]["gate"] = {"max_accuracy_drop": 1.0, "max_forgetting": 1.0}
        self.daemon = DaemonProcess(directory, settings)
        self._pause = threading.Event()

    def run(self, start_seconds: float | None = None) -> Outcome:
        """Produce, kill and restart, let it settle, and look at what is there.

        Args:
            start_seconds: how long a start takes, from another run; measured if None.
        """
        started = time.monotonic()
        producer = Producer(self.daemon.state_directory / "topics.db", self.train, self.plan)
        self.daemon.start()
        producer.start()
        try:
            if start_seconds is None:
                self.daemon.wait_ready(self._pause)
                start_seconds = time.monotonic() - started
            moments = random.Random(self.plan.seed)
            for _ in range(self.plan.kills):
                self._pause.wait(moments.uniform(*GAPS) * start_seconds)
                self.daemon.check()
                self.daemon.kill()
                self.daemon.start()
            producer.join()
            self.daemon.wait_ready(self._pause)
            self._settle()
            live = {row["label"] for row in self._get("classes")["classes"] if row["state"] == "live"}
            a_t = self._accuracy()
        finally:
            self.daemon.stop()
        resumed = len(list(self.daemon.events("session.resumed")))
        lost, duplicated = self._count()
        return Outcome(lost, duplicated, len(live & self.train.keys()), a_t, start_seconds, resumed)

    def _settle(self) -> None:
        """Wait until everything produced is stored and learnt; what has come late is flushed."""
        produced = sum(len(rows) for rows in self.train.values())
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            self.daemon.check()
            status = self._get("status")
            waiting = any(b["train"] for b in status["buffers"])
            if status["intake"]["samples"]["stored"] >= produced and status["session"] is None:
                if not waiting:
                    return
                httpx.post(f"{self.daemon.url}/v1/streams/{STREAM}/flush", timeout=30.0).raise_for_status()
            self._pause.wait(0.2)
        raise TimeoutError(f"not settled within {SETTLE_SECONDS:g} s\n{self.daemon.tail(30)}")

    def _accuracy(self) -> float:
        asked = [(name, payload) for name, rows in self.test.items() for payload in rows]
        with httpx.Client(base_url=self.daemon.url, timeout=60.0) as http, ThreadPoolExecutor(8) as pool:

            def is_right(item: tuple[str, bytes]) -> bool:
                name, payload = item
                path = f"/v1/streams/{STREAM}/classify"
                answer = http.post(path, content=payload, headers={"content-type": CONTENT_TYPE})
                answer.raise_for_status()
                return bool(answer.json()["label"] == name)

            return sum(pool.map(is_right, asked)) / len(asked)

    def _count(self) -> tuple[int, int]:
        produced = {sample_id(name, n) for name, rows in self.train.items() for n in range(len(rows))}
        state = SqlState.open(
            self.daemon.state_directory, holdout_fraction={}, clock=SystemClock(), read_only=True
        )
        try:
            found = [
                *(i for s in state.sessions(STREAM) for i in state.session_sample_ids(STREAM, s.id)),
                *state.holdout_sample_ids(STREAM, [c.id for c in state.classes(STREAM)], len(produced)),
            ]
            stored = state.counts(STREAM).stored
        finally:
            state.close()
        return len(produced - set(found)), max(len(found), stored) - len(set(found))

    def _get(self, what: str) -> Any:
        response = httpx.get(f"{self.daemon.url}/v1/streams/{STREAM}/{what}", timeout=30.0)
        response.raise_for_status()
        return response.json()


def sample_id(name: str, number: int) -> str:
    """Return the id that a produced image gets."""
    return f"{name}-{number}"


def quick_plan(kills: int, seed: int) -> Plan:
    """Return a run of four classes at a small image size."""
    demo = DemoSettings(
        seed=1,
        image_size=56,
        samples_per_class=24,
        test_per_class=50,
        adapter_blocks=1,
        feature_blocks=1,
        compact_epochs=1,
    )
    return Plan(demo, classes=4, step_seconds=4.0, kills=kills, seed=seed)


def full_plan(kills: int, seed: int) -> Plan:
    """Return a run of the demo as it is."""
    return Plan(DemoSettings(), classes=10, step_seconds=25.0, kills=kills, seed=seed)


def main() -> None:
    """Measure and report; every figure is the worst over the seeds."""
    options = parse_options("kill_demo", __doc__ or "")
    plan, kills = (quick_plan, 2) if options.quick else (full_plan, 20)
    sizes = plan(0, 0).demo
    images = load_demo_images(sizes.samples_per_class, sizes.test_per_class, sizes.seed)
    with tempfile.TemporaryDirectory(prefix="accrete-kill-demo-") as root:
        calm = KillRun(plan(0, 0), images, _directory(root, "calm")).run()
        runs = [
            KillRun(plan(kills, seed), images, _directory(root, f"kills-{seed}")).run(calm.start_seconds)
            for seed in options.seeds
        ]
    worst = max(runs, key=lambda run: abs(run.a_t - calm.a_t))
    report(
        options,
        f"kill -9 of the daemon at {kills} random moments",
        {
            "kills": kills * len(runs),
            "lost": calm.lost + sum(run.lost for run in runs),
            "duplicated": calm.duplicated + sum(run.duplicated for run in runs),
            "classes_live": min(run.classes_live for run in runs),
            "sessions_resumed": sum(run.resumed for run in runs),
            "a_t": worst.a_t,
            "undisturbed_a_t": calm.a_t,
            "a_t_difference": abs(worst.a_t - calm.a_t),
        },
        ["a_t: of the run that differs most from the undisturbed one, over the service's own answers"],
    )


def _directory(root: str, name: str) -> Path:
    directory = Path(root) / name
    (directory / "state").mkdir(parents=True)
    return directory


if __name__ == "__main__":
    main()
