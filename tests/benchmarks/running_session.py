"""A session that runs for as long as a benchmark needs it, in the daemon's own trainer process."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from cl_engine import assets
from daemon.clock import SystemClock
from daemon.sessions.job import Job, ProgressEvent
from daemon.sessions.trainer import TrainerProcess
from daemon.settings import BackboneSettings, LimitSettings, LogSettings, TrainerSettings
from daemon.sources.base import Place
from daemon.state import SqlState
from daemon.state.base import Decision, NewSample

STREAM = "session"
SAMPLES = 200
PATIENCE_SECONDS = 300.0


@contextmanager
def training(directory: Path, image_size: int) -> Iterator[Callable[[bool], None]]:
    """Run a session in the daemon's own trainer process, as the daemon would start it.

    Yields a switch: False freezes the process, so that runs beside it and without it can alternate.

    Args:
        directory: becomes the state directory of the session.
        image_size: side of the backbone's input, pixels.
    """
    clock = SystemClock()
    state = SqlState.open(directory, holdout_fraction={STREAM: 0.2}, clock=clock)
    trainer = TrainerProcess(TrainerSettings(), LogSettings(level="error"))
    try:
        state.store(STREAM, _cifar10(), [], {})
        record = state.begin_session(
            STREAM,
            new_classes=tuple(c.id for c in state.classes(STREAM)),
            method="sgds",
            # More epochs than there is time for: the session never ends by itself.
            settings={"explore_epochs": 10_000},
            seed=0,
            decision=Decision(clock.now(), "trigger", "benchmark", True, "the benchmark wants it"),
            at=clock.now(),
        )
        trainer.submit(
            Job(
                stream=STREAM,
                session=record.id,
                attempt=record.attempt,
                new_classes=record.new_classes,
                parent=None,
                method=record.method,
                options=dict(record.settings),
                seed=record.seed,
                state_directory=directory,
                holdout_limit_per_class=50,
                limits=LimitSettings(),
                backbone=BackboneSettings(image_size=image_size, threads=TrainerSettings().threads),
            )
        )
        end = time.monotonic() + PATIENCE_SECONDS
        while not any(isinstance(event, ProgressEvent) for event in trainer.events(1.0)):
            assert trainer.crashed() is None, trainer.crashed()
            assert time.monotonic() < end, "training did not start"

        def switch(on: bool) -> None:
            assert trainer.crashed() is None, trainer.crashed()
            assert trainer.pid is not None, "submitted above"
            os.kill(trainer.pid, signal.SIGCONT if on else signal.SIGSTOP)

        yield switch
    finally:
        if trainer.pid is not None:
            os.kill(trainer.pid, signal.SIGCONT)
        trainer.stop()
        state.close()


def _cifar10() -> list[NewSample]:
    data = assets.load_images("cifar10")
    samples = []
    for n in range(SAMPLES):
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(data.test_images[n])).save(buffer, "PNG")
        label = data.class_names[int(data.test_labels[n])]
        samples.append(
            NewSample(f"image-{n}", label, "image/png", buffer.getvalue(), Place(STREAM, 0), n, 0, 0.0)
        )
    return samples
