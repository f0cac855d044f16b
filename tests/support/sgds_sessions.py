"""SGDS on the small backbone: settings that take a fraction of a second, and a stream of sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cl_engine.backbones import FrozenVisionTransformer
from cl_engine.generation import Generation
from cl_engine.samples import SessionData
from cl_engine.sgds import SGDSLearner, SGDSSettings
from tests.support.small_backbone import session_data

QUICK: dict[str, Any] = {
    "adapter_blocks": 2,
    "feature_blocks": 2,
    "units_per_session": 2,
    "explore_epochs": 1,
    "compact_epochs": 2,
    "batch_size": 16,
    "learning_rate": 0.01,
}


def quick_learner(backbone: FrozenVisionTransformer, **changes: Any) -> SGDSLearner:
    """Build the learner with some settings replaced."""
    return SGDSLearner(backbone, SGDSSettings(**(QUICK | changes)))


def stream(*sessions: Sequence[int], per_class: int = 24) -> list[SessionData]:
    """Put together one session's data after the other, each with its new classes."""
    known: list[int] = []
    result = []
    for number, new in enumerate(sessions):
        result.append(session_data(number, new, known, per_class))
        known += new
    return result


def learn_all(learner: SGDSLearner, sessions: Sequence[SessionData]) -> list[Generation]:
    """Run sessions one after the other; return every generation."""
    generations: list[Generation] = []
    for data in sessions:
        generations.append(learner.learn(data, generations[-1] if generations else None))
    return generations
