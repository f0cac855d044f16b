"""A small kill matrix on Apache Kafka: the daemon dies, a second one joins or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.kill_matrix import Matrix, Plan
from tests.support.kafka_broker import KafkaBroker

pytestmark = pytest.mark.integration

PLAN = Plan(
    groups=6,
    random_kills=2,
    rounds=1,
    broker_kills=0,
    freezes=0,
    outage_seconds=0.0,
    freeze_seconds=0.0,
    shared_session_seconds=None,
    steps=("after parse", "after store", "during a session", "during a swap, after the pointer moved"),
)


def test_nothing_is_lost_doubled_or_learnt_otherwise(
    broker: KafkaBroker, proxied_port: int, tmp_path: Path
) -> None:
    """Whatever kills the daemon: produced = stored + dead-lettered, and the same digests as undisturbed."""
    matrix = Matrix(tmp_path, PLAN, 11, broker, proxied_port)
    matrix.calm()
    matrix.random_moments(PLAN.random_kills, static_member=True)
    matrix.named_steps()
    matrix.two_members(session_seconds=20.0)
    matrix.second_on_one_state()
    for name, result in matrix.results.items():
        found = (result.outcome.lost, result.outcome.duplicated, result.outcome.miscounted, result.diverged)
        assert found == (0, 0, 0, 0), f"{name}: {result.describe()}"
    assert sum(result.kills for result in matrix.results.values()) == PLAN.random_kills + len(PLAN.steps)
