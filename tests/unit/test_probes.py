"""The probes: a partition that gives nothing is named, and only where a restart would help."""

from __future__ import annotations

import httpx
import pytest

from daemon.serving.probes import stall_check
from daemon.sources.base import Place, Record
from daemon.sources.kafka.handover import Handover
from tests.support.http_service import http_service
from tests.support.manual_clock import ManualClock

FINE, STUCK = Place("photos", 0), Place("photos", 1)


def look(handover: Handover, clock: ManualClock, seconds: int) -> None:
    """Look once a second, as the consumer's thread does: one partition is at its end, one is not."""
    for _ in range(seconds):
        clock.advance(1.0)
        handover.observe({FINE: 7, STUCK: 3}, {FINE: 7, STUCK: 10})


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that the test moves."""
    return ManualClock()


@pytest.fixture
def handover(clock: ManualClock) -> Handover:
    """Return a hand-over that owns both partitions."""
    made = Handover(100, 10**6, clock)
    made.start({})
    made.assign([FINE, STUCK])
    return made


def test_livez_names_a_stalled_partition_until_it_gives_a_record(
    clock: ManualClock, handover: Handover
) -> None:
    """Assigned, not paused, behind, and nothing for a minute: 503 with its name, and 200 again afterwards."""
    with http_service() as running:
        running.service.live_checks["partitions:s"] = stall_check(lambda: handover.stalled(60.0), 60.0)
        look(handover, clock, 59)
        assert httpx.get(f"{running.url}/livez").status_code == 200
        look(handover, clock, 3)
        answer = httpx.get(f"{running.url}/livez")
        assert answer.status_code == 503
        check = answer.json()["checks"]["partitions:s"]
        assert check == {"ok": False, "detail": "behind, but no record for over 60 s: photos/1"}
        assert "partitions:s" not in httpx.get(f"{running.url}/readyz?verbose").json()["checks"]
        handover.put(STUCK, [Record("photos", 1, 3, None, b"x")])
        assert httpx.get(f"{running.url}/livez").status_code == 200


def test_a_paused_stream_and_an_outage_stall_nothing(clock: ManualClock, handover: Handover) -> None:
    """Told to give nothing, or with no broker to get it from, a restart would not help."""
    check = stall_check(lambda: handover.stalled(60.0), 60.0)
    handover.set_pause(True)
    look(handover, clock, 100)
    assert check() == (True, "no partition is stalled")
    handover.set_pause(False)
    look(handover, clock, 50)
    # No broker answers, so nobody looks.
    clock.advance(1000.0)
    assert check()[0]
