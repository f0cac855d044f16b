"""A class forgotten by a running daemon: the answer, the data, the files, and a kill in the middle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.clock import SystemClock
from daemon.demo.images import load_demo_images
from daemon.sources.log import EmbeddedLog
from daemon.state import SqlState
from tests.support.running_daemon import STREAM, RunningDaemon, daemon_settings

pytestmark = pytest.mark.integration


def class_states(daemon: RunningDaemon) -> dict[str, str]:
    """Return each class's state by label."""
    return {row["label"]: row["state"] for row in daemon.get("classes")["classes"]}


def stored_labels(daemon: RunningDaemon) -> set[int]:
    """Return the class ids that have a stored sample, read from the state itself."""
    state = SqlState.open(
        daemon.directory / "state", holdout_fraction={}, clock=SystemClock(), read_only=True
    )
    try:
        ids = [c.id for c in state.classes(STREAM)]
        held = {i for i in ids if state.holdout_sample_ids(STREAM, [i], 1)}
        return held | {i for i in ids if state.learnt_sample_ids(STREAM, i)}
    finally:
        state.close()


def manifest_digests(daemon: RunningDaemon) -> set[str]:
    """Return the generations on disk."""
    return {p.name for p in (daemon.directory / "state" / "generations").iterdir() if p.name[0] != "."}


@pytest.mark.parametrize("kill", [False, True])
def test_a_class_is_gone_for_good(tmp_path: Path, kill: bool) -> None:
    """No answer, sample, generation or rollback holds it; also if the daemon is killed after the wish."""
    images = load_demo_images(12, 1, seed=1).train
    labels = sorted(images)[:3]
    settings = daemon_settings(
        tmp_path / "state",
        learner={"method": "ridge", "options": {"feature_blocks": 2}},
        trigger={"min_samples_per_class": 5, "quiet_seconds": 0.5, "max_wait_seconds": 60.0},
    )
    # Serving is not measured here, and other tests may hold the cores.
    settings["trainer"] = {"niceness": 0}
    gone, kept = labels[0], labels[1:]
    with RunningDaemon(tmp_path, settings) as daemon:
        daemon.produce({label: images[label] for label in labels})
        daemon.wait_live(1)
        before = manifest_digests(daemon)
        assert len(before) == 1
        answer: Mapping[str, Any] = daemon.post("forget", {"label": gone})
        assert answer["accepted"]
        if kill:
            daemon.process.kill()
            daemon.start()
        daemon.wait(lambda s: s["live"]["number"] == 2 and s["session"] is None)
        assert class_states(daemon)[gone] == "forgotten"
        answered = daemon.classify(images[gone][0])
        assert gone not in {entry["label"] for entry in answered["top"]} | {answered["label"]}
        hits = [daemon.classify(images[label][0])["label"] == label for label in kept]
        assert sum(hits) >= 1
        assert manifest_digests(daemon).isdisjoint(before)
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            daemon.post("rollback")
        assert stored_labels(daemon) == {1, 2}
        assert daemon.sample("accrete_certificate_ok") == 1
        if not kill:
            assert daemon.sample("accrete_classes_forgotten_total") == 1
        assert daemon.get("sessions")["sessions"][-1]["forgets"] == 0

        # Seven more of the class are refused; another class is learnt on what is left.
        another = sorted(images)[3]
        daemon.produce({gone: images[gone][:7], another: images[another]})
        daemon.wait(lambda s: s["live"]["number"] == 3 and s["session"] is None)
        assert daemon.sample("accrete_dead_letters_total", reason="class_forgotten") == 7
        assert stored_labels(daemon) == {1, 2, 3}
    assert daemon.process.returncode == 0
    log = EmbeddedLog(daemon.directory / "state" / "topics.db", SystemClock())
    try:
        told = [r.headers["ce_type"].decode() for r in log.read(f"{STREAM}.events", 0, 0, 1000)]
    finally:
        log.close()
    assert told.count("accrete.class.forgotten.v1") == 1
