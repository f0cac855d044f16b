"""The daemon: every part, started in order and stopped in order."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import structlog
import timm
import torch

import cl_engine
from cl_engine.generation import GenerationDirectory
from daemon import triggers
from daemon.address import remove_address, write_address
from daemon.backbone import check_learners
from daemon.clock import Clock, SystemClock
from daemon.control import DaemonControl
from daemon.control_topic import ControlTopic
from daemon.events.outbox import OutboxEvents
from daemon.events.publisher import EventPublisher
from daemon.intake import Intake
from daemon.interpreter import SWITCH_SECONDS, keep_what_is_there, release_what_is_there
from daemon.live import LiveGenerations
from daemon.liveness import topics_check, turn_check
from daemon.messages.dead_letter import dead_letter_topic
from daemon.messages.formats import TEXT
from daemon.metrics import Metrics
from daemon.owner_thread import OwnerThread
from daemon.retention import DAY_SECONDS, Retention, written_topics
from daemon.runtime import TorchRuntime
from daemon.serving.batcher import Batcher
from daemon.serving.http import HttpServer, create_app
from daemon.serving.probes import stall_check
from daemon.serving.request_topic import RequestTopic
from daemon.serving.service import ServingService
from daemon.serving.slot import LiveSlot
from daemon.sessions.job import generations_directory
from daemon.sessions.supervisor import SessionSupervisor
from daemon.sessions.trainer import TrainerProcess
from daemon.settings import KafkaSource, Settings, SourceSettings
from daemon.sources import (
    control_topic,
    events_topic,
    labelled_topic,
    open_reader,
    open_sink,
    open_source,
    open_transactions,
    request_topics,
)
from daemon.sources.base import Sink
from daemon.sources.log import EmbeddedLog
from daemon.state import SqlState

log = structlog.get_logger(__name__)

# A thread that does not end within this is left to the end of the process.
JOIN_SECONDS = 10.0


class Daemon:
    """One running daemon.

    Args:
        settings: checked settings.
        clock: the machine's, or a test's.
    """

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.metrics = Metrics()
        self.port: int | None = None
        self._stop = threading.Event()
        self._signals = 0
        self._received: int | None = None

    def run(self) -> int:
        """Run until told to stop; return the exit status.

        Raises:
            StateLocked: another daemon owns the state directory.
            SwapError: the live generation cannot be restored.
            AssetError: the backbone's weights cannot be had.
            ConfigError: a stream's method cannot work on the backbone.
        """
        self._catch_signals()
        self.start()
        self._wait()
        self.shut_down()
        return 0 if self._failure() is None else 1

    def stop(self) -> None:
        """Ask the daemon to stop; returns at once."""
        self._stop.set()

    # -- start

    def start(self) -> None:
        """Start every part; serving comes before intake, intake before sessions."""
        settings, clock, metrics = self.settings, self.clock, self.metrics
        started = time.perf_counter()
        sys.setswitchinterval(SWITCH_SECONDS)
        settings.state_directory.mkdir(parents=True, exist_ok=True)
        metrics.initialise(tuple(settings.streams), triggers.POLICIES)
        metrics.build.info(versions())
        self.state = SqlState.open(
            settings.state_directory,
            holdout_fraction={name: s.holdout_fraction for name, s in settings.streams.items()},
            clock=clock,
        )
        # A killed daemon's file may name a process id that has come back, as 1 does in a container.
        remove_address(settings.state_directory)
        self.topics = EmbeddedLog(settings.state_directory / "topics.db", clock)
        directory = GenerationDirectory(generations_directory(settings.state_directory))
        directory.clean()
        # The first time this fetches the weights, which takes a while.
        log.info("backbone.loading", backbone=settings.backbone.name)
        self.runtime = TorchRuntime(settings.backbone, directory.root, metrics, settings.limits)
        check_learners(settings, self.runtime.backbone)
        self.slots = {
            name: LiveSlot(name, settings.serving.max_resident_generations, metrics)
            for name in settings.streams
        }
        self.events = OutboxEvents([name for name, s in settings.streams.items() if s.events.enabled])
        self.live = LiveGenerations(
            self.state, self.runtime, self.slots, directory, metrics, clock, self.events
        )
        for name in settings.streams:
            self.live.restore(name)
        self.sinks: dict[str, Sink] = {
            name: open_sink(s.source, self.topics) for name, s in settings.streams.items()
        }
        self.supervisor = SessionSupervisor(
            settings,
            self.state,
            TrainerProcess(settings.trainer, settings.log),
            self.live,
            metrics,
            clock,
            self.sinks,
            self.events,
        )
        self.sources = {
            name: open_source(name, s.source, self.topics, clock, metrics, settings.log)
            for name, s in settings.streams.items()
        }
        self.intakes = {name: self._intake(name) for name in settings.streams}
        # A stream whose events were switched off may have some left from before: they are published still.
        self.publishers = {
            name: EventPublisher(
                name,
                events_topic(name, s),
                state=self.state,
                sink=self.sinks[name],
                metrics=metrics,
                clock=clock,
                transactions=open_transactions(name, "events", s, metrics),
            )
            for name, s in settings.streams.items()
        }
        self.commands: dict[str, ControlTopic] = {}
        self.requests: dict[str, RequestTopic] = {}
        self._start_serving()
        self.commands = {
            name: self._control_topic(name) for name, s in settings.streams.items() if s.control.enabled
        }
        self.requests = {
            name: self._request_topic(name) for name, s in settings.streams.items() if s.requests.enabled
        }
        self.retention = Retention(
            settings.retention,
            [topic for name, s in settings.streams.items() for topic in written_topics(name, s)],
            state=self.state,
            topics=self.topics,
            metrics=metrics,
            clock=clock,
        )
        for intake in self.intakes.values():
            intake.start()
        self.supervisor.start()
        for publisher in self.publishers.values():
            publisher.start()
        for commands in self.commands.values():
            commands.start()
        for requests in self.requests.values():
            requests.start()
        self.retention.start()
        keep_what_is_there()
        log.info(
            "daemon.started",
            streams=sorted(settings.streams),
            backbone=self.runtime.facts.backbone,
            device=self.runtime.facts.device,
            dtype=self.runtime.facts.dtype,
            port=self.port,
            seconds=round(time.perf_counter() - started, 3),
        )

    def _intake(self, stream: str) -> Intake:
        settings = self.settings.streams[stream]
        return Intake(
            stream,
            source=self.sources[stream],
            sink=self.sinks[stream],
            state=self.state,
            metrics=self.metrics,
            clock=self.clock,
            limits=self.settings.limits,
            default_content_type=settings.default_content_type,
            content_types=self.runtime.backbone.content_types,
            on_stored=lambda _: self.supervisor.notify(stream),
        )

    def _control_topic(self, stream: str) -> ControlTopic:
        settings = self.settings.streams[stream]
        secret = settings.control.secret
        return ControlTopic(
            stream,
            control_topic(stream, settings),
            letters=dead_letter_topic(labelled_topic(stream, settings.source)),
            secret=None if secret is None else secret.get_secret_value(),
            remembered_seconds=self.settings.retention.command_id_days * DAY_SECONDS,
            events=self.events,
            reader=open_reader(settings.source, self.topics),
            control=self.control,
            sink=self.sinks[stream],
            state=self.state,
            metrics=self.metrics,
            clock=self.clock,
        )

    def _request_topic(self, stream: str) -> RequestTopic:
        settings = self.settings.streams[stream]
        return RequestTopic(
            stream,
            *request_topics(stream, settings),
            settings=settings.requests,
            reader=open_reader(settings.source, self.topics),
            service=self.service,
            sink=self.sinks[stream],
            state=self.state,
            metrics=self.metrics,
            clock=self.clock,
            transactions=open_transactions(stream, "requests", settings, self.metrics),
        )

    def _start_serving(self) -> None:
        self.batcher = Batcher(self.settings.serving, self.metrics)
        self.batcher.start()
        self.service = ServingService(
            self.slots,
            self.batcher,
            self.metrics,
            self.settings.serving,
            self.settings.limits,
            frozenset(self.slots) if TEXT in self.runtime.backbone.content_types else frozenset(),
        )
        self.service.live_checks["sessions"] = turn_check(self.supervisor, self.clock)
        for name, intake in self.intakes.items():
            self.service.live_checks[f"intake:{name}"] = turn_check(intake, self.clock)
        self.service.live_checks["topics"] = topics_check(self._topic_threads, self.clock)
        for name, stream in self.settings.streams.items():
            if isinstance(stream.source, KafkaSource) and stream.source.on_stall == "restart":
                self.service.live_checks[f"partitions:{name}"] = stall_check(
                    self.sources[name].stalled, stream.source.stall_seconds
                )
        self.control = DaemonControl(
            self.settings,
            self.state,
            self.runtime,
            self.supervisor,
            self.live,
            self.intakes,
            self.slots,
            self.topics,
            self.clock,
        )
        app = create_app(self.service, self.control, version=cl_engine.__version__)
        self.http = HttpServer(app, self.service)
        self.port = self.http.start()
        write_address(self.settings.state_directory, self.settings.serving.host, self.port)

    # -- health

    def _topic_threads(self) -> Iterator[tuple[SourceSettings, OwnerThread]]:
        for threads in (self.publishers, self.commands, self.requests):
            for stream, thread in threads.items():
                yield self.settings.streams[stream].source, thread

    def _failure(self) -> BaseException | None:
        failures = [
            self.supervisor.failed,
            self.retention.failed,
            *(intake.failed for intake in self.intakes.values()),
            *(thread.failed for _, thread in self._topic_threads()),
        ]
        return next((failure for failure in failures if failure is not None), None)

    # -- run and stop

    def _wait(self) -> None:
        while not self.clock.wait(self._stop, 1.0):
            if self._failure() is not None:
                # A part that cannot go on must not leave a daemon that looks alive: its keeper restarts it.
                log.error("daemon.failed", error=str(self._failure()))
                return

    def shut_down(self) -> None:
        """Stop in order: not ready, no intake, session to its checkpoint, requests drained."""
        log.info("daemon.stopping", signal=self._received)
        self.service.draining = True
        # First the commands: a flush that waits for the sessions' thread would wait in vain afterwards.
        for name, commands in self.commands.items():
            commands.stop()
            if not commands.join(JOIN_SECONDS):
                log.error("daemon.thread_left", thread=f"control-{name}")
        for intake in self.intakes.values():
            intake.stop()
        self.supervisor.stop()
        for name, intake in self.intakes.items():
            if not intake.join(JOIN_SECONDS):
                log.error("daemon.thread_left", thread=f"intake-{name}")
        if not self.supervisor.join(JOIN_SECONDS):
            log.error("daemon.thread_left", thread="sessions")
        for name, requests in self.requests.items():
            requests.stop()
            if not requests.join(JOIN_SECONDS):
                log.error("daemon.thread_left", thread=f"requests-{name}")
        for name, publisher in self.publishers.items():
            publisher.stop()
            if not publisher.join(JOIN_SECONDS):
                log.error("daemon.thread_left", thread=f"events-{name}")
        self.retention.stop()
        if not self.retention.join(JOIN_SECONDS):
            log.error("daemon.thread_left", thread=self.retention.name)
        self.http.stop(self.settings.serving.drain_seconds)
        self.batcher.drain(self.settings.serving.drain_seconds)
        self.batcher.stop()
        self.batcher.join(JOIN_SECONDS)
        for sink in self.sinks.values():
            sink.close()
        remove_address(self.settings.state_directory)
        self.topics.close()
        self.state.close()
        release_what_is_there()
        log.info("daemon.stopped")

    def _catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._signals += 1
        self._received = number
        if self._signals > 1:
            # Everything durable is atomic, so a hard exit loses at most the running epoch.
            os._exit(128 + number)
        self._stop.set()


def versions() -> dict[str, str]:
    """Return the versions that a bug report needs."""
    return {
        "version": cl_engine.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "cuda": str(torch.version.cuda or "none"),
    }


def run(settings: Settings) -> None:
    """Run a daemon and exit with its status."""
    sys.exit(Daemon(settings).run())
