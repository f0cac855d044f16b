"""Images that only a decode can tell are broken: a running daemon makes them dead letters and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.clock import SystemClock
from daemon.demo.images import CONTENT_TYPE
from daemon.messages.encode import Item, arrow_class_batch
from daemon.sources.log import EmbeddedLog
from tests.support.ingest import broken_pixels, image
from tests.support.running_daemon import STREAM, RunningDaemon, daemon_settings

pytestmark = pytest.mark.integration

PER_CLASS = 30
BROKEN = 12


def test_broken_images_become_dead_letters_when_a_session_reads_them(tmp_path: Path) -> None:
    """In training and holdout alike; what was produced is stored or a dead letter, and the rest is learnt."""
    settings = daemon_settings(tmp_path / "state", learner={"method": "ridge"})
    # Serving is not measured here, and other tests may hold the cores.
    settings["trainer"] = {"niceness": 0}
    with RunningDaemon(tmp_path, settings) as daemon:
        good = {
            name: [Item(image(n + 1000 * c, side=32), f"{name}-{n}") for n in range(PER_CLASS)]
            for c, name in enumerate(("red", "green"))
        }
        good["red"] += [Item(broken_pixels(), f"broken-{n}") for n in range(BROKEN)]
        daemon.append([arrow_class_batch(name, CONTENT_TYPE, items) for name, items in good.items()])
        status = daemon.wait(lambda s: s["live"] is not None and s["session"] is None, seconds=300.0)
        assert daemon.sample("accrete_samples_withdrawn_total") == BROKEN
        assert daemon.sample("accrete_dead_letters_total", reason="bad_payload") == BROKEN
        assert status["intake"]["samples"] == {
            "stored": 2 * PER_CLASS,
            "duplicate": 0,
            "dead_lettered": BROKEN,
        }
        [session] = daemon.get("sessions")["sessions"]
        assert (session["outcome"], session["attempt"]) == ("promoted", 2)
    log = EmbeddedLog(tmp_path / "state" / "topics.db", SystemClock())
    try:
        letters = log.read(f"{STREAM}.dlq", 0, 0, 2 * BROKEN)
    finally:
        log.close()
    assert sorted(str(letter.headers["id"], "ascii") for letter in letters) == sorted(
        f"broken-{n}" for n in range(BROKEN)
    )
