"""The same seed and stream give the same generation: twice in one process, and in another one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from cl_engine.learners import create, methods
from tests.support.methods import OPTIONS, digest_of, two_sessions
from tests.support.small_backbone import small_backbone


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, str]:
    """Run every method in a fresh process with as many threads as this one, and return the digests."""
    command = [sys.executable, "-m", "tests.support.methods", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    digests: dict[str, str] = json.loads(done.stdout)
    return digests


@pytest.mark.parametrize("method", list(OPTIONS))
def test_the_digest_is_the_same_again(method: str, elsewhere: dict[str, str]) -> None:
    """Nothing random escapes the seed, whatever was drawn before."""
    first = digest_of(method)
    torch.rand(7)
    assert digest_of(method) == first
    assert elsewhere[method] == first


def test_every_method_is_here() -> None:
    """A new method must be added."""
    assert set(OPTIONS) == set(methods())


@pytest.mark.parametrize("method", ["sgds", "exssnet", "finetune"])
def test_another_seed_gives_another_generation(method: str) -> None:
    """The digest is no constant: where something is drawn, the seed decides it."""
    data = two_sessions()[0]
    backbone = small_backbone()
    made = [
        create(method, backbone, OPTIONS[method]).learn(seeded, None).digest
        for seeded in (data, type(data)(**{**vars(data), "seed": data.seed + 1}))
    ]
    assert made[0] != made[1]
