"""The demo from start to end."""

from __future__ import annotations

import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cl_engine import assets
from cl_engine.errors import AssetError
from daemon.clock import SystemClock
from daemon.demo.images import CONTENT_TYPE, DemoImages, load_demo_images
from daemon.demo.load import LoadClient, LoadReport
from daemon.demo.measure import Measured, measure
from daemon.demo.process import DaemonProcess, DemoFailed, MemoryWatch
from daemon.demo.report import Summary, draw_plot, print_report, write_summary
from daemon.demo.settings import STREAM, DemoSettings
from daemon.messages.encode import Item, arrow_class_batch
from daemon.sources.embedded import EmbeddedLog, EmbeddedSink

BACKBONE = "vit_small_patch14_dinov2.lvd142m"
# Samples in one class batch: several messages a class, as a camera or a labelling tool would send them.
BATCH = 20
SESSION_SECONDS = 600.0


def run_demo(settings: DemoSettings, *, keep: bool, json_path: Path | None, plot: Path) -> None:
    """Run the demo; print the summary, draw the plot, and write JSON if asked.

    Args:
        settings: sizes and seed.
        keep: leave the service running until Ctrl-C.
        json_path: where the JSON summary goes, None for nowhere.
        plot: where the plot goes.
    """
    console = Console()
    # A demo that is told to end must take its daemon along: the default action would leave it behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    directory = Path(tempfile.mkdtemp(prefix="accrete-demo-"))
    try:
        Demo(settings, directory, console).run(keep=keep, json_path=json_path, plot=plot)
    except (DemoFailed, AssetError) as error:
        console.print(f"[red]The demo failed:[/red] {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from None
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Demo:
    """One run of the demo.

    Args:
        settings: sizes and seed.
        directory: takes the daemon's state and log.
        console: where progress goes.
    """

    def __init__(self, settings: DemoSettings, directory: Path, console: Console) -> None:
        self.settings, self.console = settings, console
        self.daemon = DaemonProcess(directory, settings.daemon_settings(directory / "state"))
        self.first_sample: dict[str, float] = {}
        self._pause = threading.Event()

    def run(self, *, keep: bool, json_path: Path | None, plot: Path) -> None:
        """Run everything; see `run_demo`."""
        images = self.fetch()
        classes = list(images.train)
        step = self.settings.classes_per_session
        sessions = [classes[i : i + step] for i in range(0, len(classes), step)]
        memory = MemoryWatch()
        memory.start()
        started = time.monotonic()
        try:
            report = self.learn(images, sessions)
            digests = [row["digest"] for row in self.get("generations")["generations"]]
            status = self.get("status")
            measured = self.measure(images, digests)
            summary = self.summarise(measured, report, status, len(digests), started, memory.stop(), images)
            print_report(self.console, summary, measured, sessions, sum(len(v) for v in images.test.values()))
            for reason in report.failed[:5]:
                self.console.print(f"[red]failed request:[/red] {escape(reason)}", highlight=False)
            draw_plot(plot, measured)
            self.console.print(f"plot: {plot}")
            if json_path is not None:
                write_summary(
                    json_path, summary, self.settings.seed, f"make demo ARGS='--json {json_path.name}'"
                )
            if keep:
                self.wait_for_interrupt()
        finally:
            self.daemon.stop()

    def fetch(self) -> DemoImages:
        """Fetch the backbone and the images, or find them in the cache."""
        with self.progress() as progress:
            task = progress.add_task("fetching the backbone (first time only)", total=1.0)
            assets.fetch(BACKBONE, on_progress=_show(progress, task))
            progress.update(task, completed=1.0, description="backbone")
            task = progress.add_task("fetching CIFAR-10 (first time only)", total=1.0)
            images = load_demo_images(
                self.settings.samples_per_class,
                self.settings.test_per_class,
                self.settings.seed,
                _show(progress, task),
            )
            progress.update(task, completed=1.0, description="CIFAR-10")
        return images

    def learn(self, images: DemoImages, sessions: Sequence[Sequence[str]]) -> LoadReport:
        """Start the daemon, produce the classes step by step under load, and return the client's report."""
        with self.progress() as progress:
            task = progress.add_task("starting the daemon", total=1.0)
            self.daemon.start()
            self.daemon.wait_ready(self._pause)
            progress.update(task, completed=1.0, description=f"daemon at {self.daemon.url}")
            client = LoadClient(
                self.daemon.url, STREAM, images.test, self.settings.requests_per_second, self.settings.seed
            )
            client.start()
            log = EmbeddedLog(self.daemon.state_directory / "topics.db", SystemClock())
            try:
                for number, classes in enumerate(sessions):
                    task = progress.add_task(f"session {number + 1}: {' + '.join(classes)}", total=1.0)
                    self.produce(EmbeddedSink(log), images, classes)
                    self.wait_promoted(number + 1, lambda done, t=task: progress.update(t, completed=done))
                self.wait_answered(client, list(images.train))
            finally:
                report = client.stop()
                log.close()
        return report

    def produce(self, sink: EmbeddedSink, images: DemoImages, classes: Sequence[str]) -> None:
        """Send some classes' images in class batches, the classes in turn."""
        batches = {
            name: [
                [Item(payload) for payload in images.train[name][i : i + BATCH]]
                for i in range(0, len(images.train[name]), BATCH)
            ]
            for name in classes
        }
        for turn in range(max(len(b) for b in batches.values())):
            for name in classes:
                if turn < len(batches[name]):
                    self.first_sample.setdefault(name, time.monotonic())
                    sink.send(STREAM, [arrow_class_batch(name, CONTENT_TYPE, batches[name][turn])])

    def wait_promoted(self, number: int, on_progress: Any) -> None:
        """Wait until generation `number` is live.

        Raises:
            DemoFailed: the session did not end in a promotion, or took too long.
        """
        deadline = time.monotonic() + SESSION_SECONDS
        while time.monotonic() < deadline:
            self.daemon.check()
            status = self.get("status")
            if status["live"] is not None and status["live"]["number"] >= number:
                on_progress(1.0)
                return
            if status["session"] is not None:
                on_progress(0.05 + 0.9 * status["session"]["done"])
            elif status["sessions"] >= number:
                last = self.get("sessions")["sessions"][-1]
                if last["outcome"] not in ("running", "promoted"):
                    raise DemoFailed(f"session {number} was {last['outcome']}: {last['detail']}")
            self._pause.wait(0.25)
        raise DemoFailed(f"session {number} took longer than {SESSION_SECONDS:g} s\n{self.daemon.tail()}")

    def wait_answered(self, client: LoadClient, classes: Sequence[str]) -> None:
        """Go on until the client has had a correct answer of every class, for at most a minute."""
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline and not set(classes) <= client.report.first_correct.keys():
            self._pause.wait(0.2)

    def measure(self, images: DemoImages, digests: Sequence[str]) -> Measured:
        """Measure the generations and the baselines."""
        with self.progress() as progress:
            tasks: dict[str, TaskID] = {}

            def on_step(what: str, done: float) -> None:
                if what not in tasks:
                    tasks[what] = progress.add_task(f"measuring: {what}", total=1.0)
                progress.update(tasks[what], completed=done)

            return measure(self.settings, images, self.daemon.state_directory, digests, on_step)

    def summarise(
        self,
        measured: Measured,
        report: LoadReport,
        status: Mapping[str, Any],
        sessions: int,
        started: float,
        peak_memory: int,
        images: DemoImages,
    ) -> Summary:
        """Gather the figures."""
        pauses = [float(e["pause_seconds"]) for e in self.daemon.events("generation.published")]
        samples = status["intake"]["samples"]
        first_correct = {
            name: round(report.first_correct[name] - self.first_sample[name], 2)
            for name in images.train
            if name in report.first_correct
        }
        return Summary(
            a_t=measured.sgds.a_t,
            a_bar=measured.sgds.a_bar,
            forgetting=measured.sgds.forgetting,
            ncm_a_t=measured.ncm.a_t,
            finetune_a_t=measured.finetune.a_t,
            sessions=sessions,
            requests=report.requests,
            failed=len(report.failed),
            swap_pause_median_seconds=statistics.median(pauses),
            swap_pause_max_seconds=max(pauses),
            first_correct_seconds=first_correct,
            produced=sum(len(v) for v in images.train.values()),
            stored=samples["stored"],
            dead_lettered=samples["dead_lettered"],
            seconds=round(time.monotonic() - started, 1),
            peak_rss_bytes=peak_memory,
        )

    def get(self, what: str) -> Any:
        """Ask the daemon's control endpoints."""
        try:
            response = httpx.get(f"{self.daemon.url}/v1/streams/{STREAM}/{what}", timeout=30.0)
            response.raise_for_status()
        except httpx.HTTPError as error:
            self.daemon.check()
            raise DemoFailed(f"the daemon does not answer {what}: {error}") from error
        return response.json()

    def wait_for_interrupt(self) -> None:
        """Leave the service running until Ctrl-C."""
        self.console.print(
            f"the service goes on at {self.daemon.url} (model {STREAM!r}, try {self.daemon.url}/docs); "
            "Ctrl-C ends it"
        )
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        while not stop.wait(1.0):
            self.daemon.check()

    def progress(self) -> Progress:
        """Return a progress display with a time left."""
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )


def _show(progress: Progress, task: TaskID) -> assets.OnProgress:
    def on_progress(_step: str, done: int, total: int) -> None:
        progress.update(task, completed=done / total if total else None)

    return on_progress
