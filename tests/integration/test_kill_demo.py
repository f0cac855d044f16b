"""`kill -9` of the daemon while its stream goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.demo.images import load_demo_images
from tests.benchmarks.kill_demo import KillRun, quick_plan

pytestmark = pytest.mark.integration


def test_three_kills_lose_nothing(tmp_path: Path) -> None:
    """After each restart it goes on: every sample is there once, every class answers, and rightly."""
    plan = quick_plan(kills=3, seed=4)
    images = load_demo_images(plan.demo.samples_per_class, 10, plan.demo.seed)
    (tmp_path / "state").mkdir()
    found = KillRun(plan, images, tmp_path).run()
    assert (found.lost, found.duplicated) == (0, 0)
    assert found.classes_live == plan.classes
    assert found.a_t >= 0.6
