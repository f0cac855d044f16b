"""SGDS: semantic-guided dynamic sparsification of adapters on a frozen vision transformer."""

from cl_engine.sgds.learner import SGDSLearner
from cl_engine.sgds.settings import SGDSSettings

__all__ = ["SGDSLearner", "SGDSSettings"]
