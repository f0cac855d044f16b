"""The trainer process: reads jobs from standard input, learns or forgets, writes events to standard output.

It ends when its standard input closes, so it never outlives the daemon; a daemon killed with -9 closes
it too. Everything it makes is content-addressed and atomic, so it may be killed at any instruction.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any, TextIO

import structlog
import torch
from pydantic import BaseModel

from cl_engine.backbones import Backbone
from cl_engine.checkpoint import remove_checkpoint
from cl_engine.errors import EngineError
from cl_engine.features import extract
from cl_engine.generation import Generation, GenerationDirectory
from cl_engine.learners import Progress, create, servable
from cl_engine.learners.registry import forget
from cl_engine.samples import SessionData
from daemon.backbone import load
from daemon.clock import SystemClock
from daemon.errors import UnreadableSamples
from daemon.logs import configure_logging
from daemon.sessions.evaluate import evaluate, without_last_session
from daemon.sessions.job import (
    DoneEvent,
    FailedEvent,
    Job,
    ProgressEvent,
    UnreadableEvent,
    UnreadableSample,
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
        self._backbone: tuple[BackboneSettings, Backbone] | None = None

    def run(self, job: Job) -> None:
        """Run one session and announce its outcome."""
        structlog.contextvars.bind_contextvars(stream=job.stream, session=job.session)
        try:
            generation = self._make(job)
        except UnreadableSamples as error:
            unreadable = tuple(UnreadableSample(id=i, message=why) for i, why in error.reasons.items())
            self._emit(UnreadableEvent(session=job.session, samples=unreadable))
            return
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

    def _make(self, job: Job) -> Generation:
        """Make the session's generation and write it, complete and measured."""
        backbone = self._load(job)
        directory = GenerationDirectory(generations_directory(job.state_directory))
        checkpoint = checkpoint_directory(job.state_directory, job.stream, job.session)
        previous = None
        if job.parent is not None:
            previous = directory.load(job.parent, with_learner_state=True)
        state = SqlState.open(job.state_directory, holdout_fraction={}, clock=SystemClock(), read_only=True)
        try:
            if job.forgets is None:
                generation = self._learn(job, backbone, previous, state, checkpoint)
            else:
                assert previous is not None, "a class can only be taken out of a generation"
                generation = self._forget(job, job.forgets, backbone, previous, state)
        finally:
            state.close()
        directory.write(generation)
        remove_checkpoint(checkpoint)
        return generation

    def _learn(
        self, job: Job, backbone: Backbone, previous: Generation | None, state: SqlState, checkpoint: Path
    ) -> Generation:
        learned = () if previous is None else previous.class_ids
        train_ids = state.session_sample_ids(job.stream, job.session)
        train = StoredSamples(state, job.stream, train_ids, backbone.decode)
        holdout = self._holdout(job, backbone, (*learned, *job.new_classes), state)
        data = SessionData(
            session=0 if previous is None else previous.session + 1,
            new_classes=tuple(sorted(job.new_classes)),
            train=train,
            holdout=holdout,
            class_labels={c.id: c.label for c in state.classes(job.stream)},
            seed=job.seed,
        )
        try:
            generation = create(job.method, backbone, job.options).learn(
                data, previous, checkpoint=checkpoint, on_progress=lambda p: self._progress(job, p)
            )
            measured = self._measured(
                job, backbone, generation, holdout, None if previous is None else previous.evaluation
            )
        except UnreadableSamples:
            unreadable = train.unreadable()
            if unreadable:
                # What was trained so far counted on samples that the session will not have again.
                remove_checkpoint(checkpoint)
            raise UnreadableSamples(unreadable | holdout.unreadable()) from None
        return replace(
            generation,
            evaluation=measured,
            provenance={
                "stream": job.stream,
                "session": job.session,
                "samples": offset_ranges(state.payloads(job.stream, train_ids)),
            },
        )

    def _forget(
        self, job: Job, class_id: int, backbone: Backbone, previous: Generation, state: SqlState
    ) -> Generation:
        ids = state.learnt_sample_ids(job.stream, class_id)
        samples = StoredSamples(state, job.stream, ids, backbone.decode)
        counted = partial(
            extract,
            on_batch=lambda n: self._progress(job, Progress("features", n / len(ids), {"samples": n})),
        )
        generation = forget(backbone, previous, class_id, samples, counted)
        holdout = self._holdout(job, backbone, generation.class_ids, state)
        return replace(
            generation,
            evaluation=self._measured(
                job, backbone, generation, holdout, without_last_session(previous.evaluation)
            ),
            provenance={"stream": job.stream, "session": job.session, "forgotten": class_id},
        )

    def _holdout(
        self, job: Job, backbone: Backbone, class_ids: Sequence[int], state: SqlState
    ) -> StoredSamples:
        ids = state.holdout_sample_ids(job.stream, class_ids, job.holdout_limit_per_class)
        return StoredSamples(state, job.stream, ids, backbone.decode)

    def _measured(
        self,
        job: Job,
        backbone: Backbone,
        generation: Generation,
        holdout: StoredSamples,
        parent_evaluation: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        return evaluate(
            generation,
            servable(backbone, generation),
            holdout,
            parent_evaluation,
            lambda share: self._progress(job, Progress("evaluate", share), evaluating=True),
        )

    def _progress(self, job: Job, progress: Progress, *, evaluating: bool = False) -> None:
        done = (
            1 - EVALUATION_SHARE + EVALUATION_SHARE * progress.done
            if evaluating
            else progress.done * (1 - EVALUATION_SHARE)
        )
        detail = {name: float(value) for name, value in progress.detail.items()}
        self._emit(ProgressEvent(session=job.session, phase=progress.phase, done=done, detail=detail))

    def _load(self, job: Job) -> Backbone:
        settings = job.backbone
        if self._backbone is None or self._backbone[0] != settings:
            if settings.threads is not None:
                torch.set_num_threads(settings.threads)
            self._backbone = (settings, load(settings, job.limits))
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
