"""Every method of the registry with settings of a fraction of a second, and two sessions for it."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from cl_engine.learners import create
from cl_engine.samples import SessionData
from tests.support.small_backbone import session_data, small_backbone

SUPERMASK: dict[str, Any] = {
    "feature_blocks": 2,
    "hidden": [16],
    "outputs": 4,
    "epochs": 2,
    "density": 0.3,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ridge": {"feature_blocks": 2},
    "ranpac": {"feature_blocks": 2, "projection": 32},
    "slda": {"feature_blocks": 2},
    "ncm": {},
    "sgds": {
        "feature_blocks": 2,
        "adapter_blocks": 2,
        "units_per_session": 2,
        "explore_epochs": 1,
        "compact_epochs": 1,
    },
    "exssnet": SUPERMASK,
    "supsup": SUPERMASK,
    "finetune": {"adapter_blocks": 2, "epochs": 1},
}


def two_sessions() -> tuple[SessionData, SessionData]:
    """Put together two sessions of two classes."""
    return session_data(0, [0, 1], []), session_data(1, [2, 3], [0, 1])


def digest_of(method: str) -> str:
    """Run both sessions and return the last generation's digest."""
    made = None
    for data in two_sessions():
        made = create(method, small_backbone(), OPTIONS[method]).learn(data, made)
    assert made is not None
    return made.digest


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps({method: digest_of(method) for method in OPTIONS}))
