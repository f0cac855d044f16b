"""Analytic classifiers over features: ridge regression and class prototypes."""

from cl_engine.heads.prototypes import PrototypeStatistics
from cl_engine.heads.ridge import RidgeStatistics, fit_ridge, leave_one_out
from cl_engine.heads.standardise import Standardiser

__all__ = ["PrototypeStatistics", "RidgeStatistics", "Standardiser", "fit_ridge", "leave_one_out"]
