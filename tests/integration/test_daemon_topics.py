"""A real daemon that is commanded by a topic and tells of itself in another."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from daemon.clock import SystemClock
from daemon.demo.images import load_demo_images
from daemon.messages.control import COMMANDS, command_message
from daemon.messages.dead_letter import dead_letter_facts
from daemon.messages.predictions import TopicPrediction
from daemon.sources.base import Message, Record
from daemon.sources.log import EmbeddedLog
from tests.support.running_daemon import STREAM, RunningDaemon, daemon_settings
from tests.unit.test_cli import accrete

pytestmark = pytest.mark.integration

SECRET = "a secret of some length"


def read(daemon: RunningDaemon, topic: str) -> list[Record]:
    """Read a topic of the daemon's log."""
    log = EmbeddedLog(daemon.directory / "state" / "topics.db", SystemClock())
    try:
        return log.read(topic, 0, 0, 1000)
    finally:
        log.close()


def append(daemon: RunningDaemon, topic: str, message: Message) -> None:
    """Append to a topic of the daemon's log."""
    log = EmbeddedLog(daemon.directory / "state" / "topics.db", SystemClock())
    try:
        log.append(topic, [message])
    finally:
        log.close()


def command(daemon: RunningDaemon, name: str, secret: str | None = SECRET, **fields: Any) -> None:
    """Send a command."""
    values = {"schema_version": 1, "stream": STREAM, "command": name, "id": f"{time.time()}"}
    message = command_message(COMMANDS.validate_python(values | fields), secret)
    append(daemon, f"{STREAM}.control", message)


def live_number(status: Mapping[str, Any]) -> int:
    """Return the live generation's number, 0 if there is none."""
    return 0 if status["live"] is None else int(status["live"]["number"])


def wait_events(daemon: RunningDaemon, count: int) -> list[str]:
    """Wait until so many events of sessions and generations are published, and return their types."""
    deadline = time.monotonic() + 20
    while len(found := events(daemon)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def events(daemon: RunningDaemon) -> list[str]:
    """Return the types of the events but those of commands, which come in between somewhere."""
    found = read(daemon, f"{STREAM}.events")
    assert len({record.headers["ce_id"] for record in found}) == len(found)
    types = [record.headers["ce_type"].decode().removeprefix("accrete.") for record in found]
    return [name for name in types if name != "command.ended.v1"]


def wait_answers(daemon: RunningDaemon) -> list[Record]:
    """Wait until a request is answered, and return the answers."""
    deadline = time.monotonic() + 20
    while not (found := read(daemon, f"{STREAM}.predictions")) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def test_commanded_by_a_topic_and_telling_of_itself(tmp_path: Path) -> None:
    """Flush, pause and rollback by message; the events tell it all, and a restart repeats nothing."""
    images = list(load_demo_images(12, 1, seed=1).train.items())
    settings = daemon_settings(
        tmp_path / "state",
        learner={"method": "ncm"},
        # Only a flush starts a session.
        trigger={"quiet_seconds": 3600.0, "max_wait_seconds": 3600.0},
        control={"enabled": True, "secret": SECRET},
        requests={"enabled": True},
    )
    with RunningDaemon(tmp_path, settings) as daemon:
        for number in (1, 2):
            total = daemon.produce(dict(images[number - 1 : number]))
            daemon.wait(lambda s, n=number, t=total: s["intake"]["samples"]["stored"] >= n * t)
            command(daemon, "flush")
            daemon.wait_live(number)
        asked = images[0][1][0]
        append(daemon, f"{STREAM}.requests", Message(asked, headers={"id": b"mine"}))
        (answer,) = (TopicPrediction.model_validate_json(r.value or b"") for r in wait_answers(daemon))
        assert answer.prediction is not None
        assert (answer.request_id, answer.prediction.label) == ("mine", daemon.classify(asked)["label"])
        command(daemon, "rollback", secret=None)
        command(daemon, "rollback")
        paused = accrete("command", STREAM, "pause", "--wait", "-c", daemon.config)
        assert (paused.exit_code, paused.output.splitlines()[1]) == (0, "done: intake is paused")
        absent = accrete("command", STREAM, "promote", "--generation", "99", "--wait", "-c", daemon.config)
        assert absent.exit_code == 1
        assert "not done: " in absent.output
        daemon.wait(lambda s: live_number(s) == 1 and s["intake"]["paused"])
        session = [
            "session.started.v1",
            "gate.judged.v1",
            "session.promoted.v1",
            "generation.published.v1",
        ]
        expected = [*session, *session, "generation.rolled_back.v1"]
        assert wait_events(daemon, len(expected)) == expected
        assert daemon.sample("accrete_control_commands_total", outcome="done") == 4
        assert daemon.sample("accrete_control_commands_total", outcome="dead_lettered") == 1
    assert daemon.process.returncode == 0
    (letter,) = read(daemon, f"{STREAM}.dlq")
    assert dead_letter_facts(letter).reason == "bad_signature"
    with daemon:
        command(daemon, "promote", generation="2")
        daemon.wait(lambda s: live_number(s) == 2)
        assert wait_events(daemon, len(expected) + 1) == [*expected, "generation.rolled_back.v1"]
        assert daemon.sample("accrete_control_commands_total", outcome="done") == 1
        assert daemon.sample("accrete_events_pending") == 0
        kinds = [d["policy"] for d in daemon.get("decisions")["decisions"] if d["kind"] == "control"]
    assert kinds == ["promote", "promote", "pause", "rollback", "flush", "flush"]
