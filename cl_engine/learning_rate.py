"""The learning-rate schedule of everything trained here."""

from __future__ import annotations

import math

from torch.optim import Optimizer


def set_cosine_rate(optimiser: Optimizer, peak: float, done: float) -> None:
    """Set the rate for the next step: half a cosine from the peak down to zero.

    A function of the finished share alone, so that a session that goes on from a checkpoint needs nothing
    but its epoch (SGDR without restarts, Loshchilov and Hutter 2017).

    Args:
        optimiser: whose parameter groups are set.
        peak: rate at the start.
        done: finished share of the training, 0 to 1.
    """
    for group in optimiser.param_groups:
        group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * done))
