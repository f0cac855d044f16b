"""The trainer process: reads jobs from standard input, trains, writes events to standard output.

It ends when its standard input closes, so it never outlives the daemon; a daemon killed with -9 closes
it too. Everything it makes is content-addressed and atomic, so it may be killed at any instruction.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from queue import Queue
from typing import TextIO

import structlog
import torch
from pydantic import BaseModel

from cl_engine.backbones import FrozenModel, load_backbone
from cl_engine.checkpoint import remove_checkpoint
from cl_engine.errors import EngineError
from cl_engine.generation import Generation, GenerationDirectory
from cl_engine.learners import Progress, create
from cl_engine.samples import SessionData
from daemon.clock import SystemClock
from daemon.logs import configure_logging
from daemon.sessions.evaluate import evaluate
from daemon.sessions.job import (
    DoneEvent,
    FailedEvent,
    Job,
    ProgressEvent,
    checkpoint_directory,
    generations_directory,
)
from daemon.sessions.samples import StoredSamples, offset_ranges
from daemon.settings import BackboneSettings, LogSettings
from daemon.state import SqlState

log = structlog.get_logger(__name__)

# What remains of the progress bar for the evaluation on the holdout.
EVALUATION_SHARE = 0.15

Emit = Callable[[BaseModel], None]


class Worker:
    """Runs jobs one after another and keeps the backbone between them.

    Args:
        emit: where events go.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._backbone: tuple[BackboneSettings, FrozenModel] | None = None

    def run(self, job: Job) -> None:
        """Train one session and announce its outcome."""
        structlog.contextvars.bind_contextvars(stream=job.stream, session=job.session)
        try:
            generation = self._train(job)
        except (EngineError, ValueError) as error:
            log.exception("session.failed", attempt=job.attempt)
            self._emit(FailedEvent(session=job.session, kind=type(error).__name__, message=str(error)))
            return
        finally:
            structlog.contextvars.unbind_contextvars("stream", "session")
        self._emit(
            DoneEvent(
                session=job.session,
                digest=generation.digest,
                evaluation=dict(generation.evaluation),
                certificate=dict(generation.certificate),
            )
        )

    def _train(self, job: Job) -> Generation:
        backbone = self._load(job.backbone)
        backbone.max_pixels = job.max_image_pixels
        directory = GenerationDirectory(generations_directory(job.state_directory))
        state = SqlState.open(job.state_directory, holdout_fraction={}, clock=SystemClock(), read_only=True)
        try:
            previous = None
            if job.parent is not None:
                previous = directory.load(job.parent, with_learner_state=True)
            learned = () if previous is None else previous.class_ids
            train_ids = state.session_sample_ids(job.stream, job.session)
            holdout_ids = state.holdout_sample_ids(
                job.stream, (*learned, *job.new_classes), job.holdout_limit_per_class
            )
            train = StoredSamples(state, job.stream, train_ids, backbone.decode)
            holdout = StoredSamples(state, job.stream, holdout_ids, backbone.decode)
            data = SessionData(
                session=0 if previous is None else previous.session + 1,
                new_classes=tuple(sorted(job.new_classes)),
                train=train,
                holdout=holdout,
                class_labels={c.id: c.label for c in state.classes(job.stream)},
                seed=job.seed,
            )
            learner = create(job.method, backbone, job.options)
            checkpoint = checkpoint_directory(job.state_directory, job.stream, job.session)
            generation = learner.learn(
                data, previous, checkpoint=checkpoint, on_progress=lambda p: self._progress(job, p)
            )
            measured = evaluate(
                generation,
                learner.servable(generation),
                holdout,
                None if previous is None else previous.evaluation,
                lambda share: self._progress(job, Progress("evaluate", share), evaluating=True),
            )
            ranges = offset_ranges(state.payloads(job.stream, train_ids))
        finally:
            state.close()
        generation = replace(
            generation,
            evaluation=measured,
            provenance={"stream": job.stream, "session": job.session, "samples": ranges},
        )
        directory.write(generation)
        remove_checkpoint(checkpoint)
        return generation

    def _progress(self, job: Job, progress: Progress, *, evaluating: bool = False) -> None:
        done = (
            1 - EVALUATION_SHARE + EVALUATION_SHARE * progress.done
            if evaluating
            else progress.done * (1 - EVALUATION_SHARE)
        )
        detail = {name: float(value) for name, value in progress.detail.items()}
        self._emit(ProgressEvent(session=job.session, phase=progress.phase, done=done, detail=detail))

    def _load(self, settings: BackboneSettings) -> FrozenModel:
        if self._backbone is None or self._backbone[0] != settings:
            if settings.threads is not None:
                torch.set_num_threads(settings.threads)
            backbone = load_backbone(
                settings.name,
                image_size=settings.image_size,
                weights=settings.weights,
                device=settings.device,
                dtype=settings.dtype,
            )
            self._backbone = (settings, backbone)
        return self._backbone[1]


def main() -> None:
    """Serve jobs until standard input closes."""
    # Nothing but events may reach the daemon's pipe, whatever a library prints.
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    configure_logging(LogSettings(**json.loads(os.environ.pop("ACCRETE_TRAINER_LOG", "{}"))))
    jobs: Queue[Job] = Queue()
    threading.Thread(target=_read_jobs, args=(sys.stdin, jobs), name="jobs", daemon=True).start()
    lock = threading.Lock()

    def emit(event: BaseModel) -> None:
        with lock:
            pipe.write(event.model_dump_json() + "\n")

    worker = Worker(emit)
    while True:
        worker.run(jobs.get())


def _read_jobs(stream: TextIO, jobs: Queue[Job]) -> None:
    for line in stream:
        jobs.put(Job.model_validate_json(line))
    # The daemon is gone or wants this process gone; there is nothing that a clean end would add.
    os._exit(0)


if __name__ == "__main__":
    main()
