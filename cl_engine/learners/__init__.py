"""The methods, behind one protocol."""

from cl_engine.learners.base import Learner, Prediction, Progress, ProgressListener, Servable
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
