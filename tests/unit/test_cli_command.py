"""`accrete command`: what it sends, and how it tells what came of it."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from daemon.clock import SystemClock
from daemon.errors import DeadLetter
from daemon.messages.control import Command, parse_command
from daemon.messages.events import CommandEnded, event_message
from daemon.sources.log import EmbeddedLog
from tests.unit.test_cli import accrete, configuration

SECRET = "a secret of some length"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write a configuration of two streams, one of which reads commands."""
    return configuration(
        tmp_path, streams={"s": {"control": {"enabled": True, "secret": SECRET}}, "deaf": {}}
    )


@pytest.fixture
def log(tmp_path: Path) -> EmbeddedLog:
    """Return the log that the command line writes to."""
    return EmbeddedLog(tmp_path / "state" / "topics.db", SystemClock())


def commands(log: EmbeddedLog, secret: str | None = SECRET) -> list[Command]:
    """Return what is in the control topic, with its signatures checked."""
    return [parse_command(record, "s", secret) for record in log.read("s.control", 0, 0, 100)]


def test_a_command_is_signed_dated_and_named(config: Path, log: EmbeddedLog) -> None:
    """The daemon takes it, its id is the one printed, and its age can be told."""
    result = accrete("command", "s", "rollback", "--generation", "2", "-c", config)
    assert result.exit_code == 0, result.output
    (sent,) = commands(log)
    assert result.output == f"{sent.id} sent to s.control\n"
    assert sent.model_dump(include={"command", "generation"}) == {"command": "rollback", "generation": "2"}
    assert sent.sent_at is not None
    assert abs(datetime.now(UTC) - sent.sent_at) < timedelta(minutes=1)


def test_a_key_file_signs_instead_of_the_configuration(
    tmp_path: Path, config: Path, log: EmbeddedLog
) -> None:
    """The secret may lie in a file of its own, with a line's end behind it."""
    key = tmp_path / "key"
    key.write_text("another secret, long enough\n")
    assert accrete("command", "s", "forget", "--label", "cat", "--key-file", key, "-c", config).exit_code == 0
    with pytest.raises(DeadLetter, match="does not fit"):
        commands(log)
    (sent,) = commands(log, "another secret, long enough")
    assert sent.model_dump(include={"label"}) == {"label": "cat"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["s", "dance"], "use one of flush, pause, resume, promote, rollback"),
        (["s", "promote"], "--generation"),
        (["s", "flush", "--label", "cat"], "flush takes no --label"),
        (["s", "forget"], "--label"),
        (["s", "remember"], "--label"),
        (["deaf", "flush"], "streams.deaf.control.enabled"),
        (["nowhere", "flush"], "no stream 'nowhere'"),
        (["s", "flush", "--key-file", "nowhere"], "--key-file nowhere"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_sent(
    config: Path, log: EmbeddedLog, arguments: list[str], words: str
) -> None:
    """The message names the option and the remedy."""
    result = accrete("command", *arguments, "-c", config)
    assert result.exit_code == 1
    assert words in result.output
    assert log.topics() == []


@pytest.mark.parametrize("done", [True, False])
def test_waiting_tells_the_outcome(config: Path, log: EmbeddedLog, done: bool) -> None:
    """The event of this very command decides, among those of others and those from before."""

    def event(command_id: str, reason: str, done: bool) -> None:
        fact = CommandEnded(stream="s", command="pause", command_id=command_id, done=done, reason=reason)
        data = json.loads(fact.model_dump_json())
        log.append("s.events", [event_message("s", reason, fact.kind, fact.subject, 1.0, data)])

    event("one from before", "not this", not done)

    def daemon() -> None:
        never = threading.Event()
        while "s.control" not in log.topics():
            never.wait(0.02)
        event("another one", "nor this", not done)
        event(commands(log)[0].id, "as it should be", done)

    answering = threading.Thread(target=daemon)
    answering.start()
    result = accrete("command", "s", "pause", "--wait", "-c", config)
    answering.join()
    assert result.exit_code == (0 if done else 1)
    assert ("done: as it should be" if done else "not done: as it should be") in result.output
    assert "this" not in result.output


def test_an_outcome_that_does_not_come(config: Path, log: EmbeddedLog) -> None:
    """Without a daemon the wait ends, and says where else to look."""
    result = accrete("command", "s", "pause", "--wait", "--timeout", "0.1", "-c", config)
    assert result.exit_code == 1
    assert "no outcome within 0.1 s" in result.output
    assert "accrete dlq list" in result.output
    assert len(commands(log)) == 1
