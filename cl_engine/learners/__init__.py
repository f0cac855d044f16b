"""The methods, behind one protocol."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cl_engine.learners.base import Learner, Prediction, Progress, ProgressListener, Servable

if TYPE_CHECKING:
    from cl_engine.learners.registry import create, default_options, methods, servable

__all__ = [
    "Learner",
    "Prediction",
    "Progress",
    "ProgressListener",
    "Servable",
    "create",
    "default_options",
    "methods",
    "servable",
]


def __getattr__(name: str) -> Any:
    # Late, because the registry imports every method and every method imports the contract beside it.
    if name in {"create", "default_options", "methods", "servable"}:
        return getattr(import_module("cl_engine.learners.registry"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
