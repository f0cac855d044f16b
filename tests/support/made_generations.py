"""A generation of a few numbers, made up."""

from __future__ import annotations

from typing import Any

import torch

from cl_engine.generation import ClassEntry, Generation


def made_generation(**changes: Any) -> Generation:
    """Build it, with some fields replaced."""
    fields: dict[str, Any] = {
        "method": "sgds",
        "backbone": "small@16px-0",
        "session": 1,
        "settings": {"scale": 1.0},
        "classes": (ClassEntry(0, "cat", 0), ClassEntry(4, "dög", 1)),
        "tensors": {"head": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)},
        "masks": {"input": torch.tensor([[True, False, True], [False, False, True]])},
        "learner_state": {"gram": torch.eye(3, dtype=torch.float64)},
        "evaluation": {"a_t": 0.5},
        "certificate": {"holds": True},
        "provenance": {"cat": [[0, 1]]},
        "parent": "0" * 64,
    }
    return Generation(**(fields | changes))
