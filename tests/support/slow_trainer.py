"""A trainer whose sessions take long: the real learner learns the same session again and again.

All the work is real, so it weighs on the machine as a long session does; the generation is that of the first
time, because learning is deterministic.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cl_engine.backbones import FrozenModel
from cl_engine.generation import Generation
from cl_engine.learners import Learner, ProgressListener, Servable, create
from cl_engine.samples import SessionData


class RepeatingLearner:
    """A learner that repeats itself until a time has passed.

    Args:
        learner: does the work.
        seconds: for how long at least.
    """

    def __init__(self, learner: Learner, seconds: float) -> None:
        self._learner, self._seconds = learner, seconds
        self.method = learner.method

    def servable(self, generation: Generation) -> Servable:
        """Build what answers requests."""
        return self._learner.servable(generation)

    def learn(
        self,
        data: SessionData,
        previous: Generation | None,
        *,
        checkpoint: Path | None = None,
        on_progress: ProgressListener | None = None,
    ) -> Generation:
        """Learn; then learn it again, without the checkpoint that would spare the work."""
        end = time.monotonic() + self._seconds
        generation = self._learner.learn(data, previous, checkpoint=checkpoint, on_progress=on_progress)
        while time.monotonic() < end:
            again = self._learner.learn(data, previous, on_progress=on_progress)
            assert again.digest == generation.digest, "the same session gave another generation"
        return generation


def slow_down(seconds: float) -> None:
    """Have this process's trainers take so long for each session."""
    from daemon.sessions import worker

    def create_slow(method: str, backbone: FrozenModel, options: Mapping[str, Any]) -> RepeatingLearner:
        return RepeatingLearner(create(method, backbone, options), seconds)

    worker.create = create_slow  # type: ignore[attr-defined,assignment]
