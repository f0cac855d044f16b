"""Commands from the control topic on the embedded log: once, in order, signed, and never by accident."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from daemon.control_topic import KIND, POLL_SECONDS, ControlTopic
from daemon.errors import DeadLetter, DeadLetterReason, SourceUnavailable
from daemon.events.outbox import OutboxEvents
from daemon.messages.control import COMMANDS, SIGNATURE, command_message, parse_command
from daemon.messages.dead_letter import dead_letter_facts, replayed_message
from daemon.sources.base import Extent, Message, Place, Record
from daemon.sources.embedded import EmbeddedReader, EmbeddedSink
from daemon.sources.log import EmbeddedLog
from tests.support.http_service import FakeControl
from tests.support.ingest import FlakySink
from tests.support.session_rig import STREAM, SessionRig

TOPIC, LETTERS = "s.control", "s.dlq"
SECRET = "a secret of some length"
REMEMBERED_SECONDS = 90 * 86_400.0


class ScriptedControl(FakeControl):
    """Answers as the daemon's control does, and may be killed in the middle of a command."""

    killed = False

    def _note(self, stream: str, call: str, argument: object = None) -> Mapping[str, Any]:
        super()._note(stream, call, argument)
        if self.killed:
            raise KeyboardInterrupt
        return {"reason": "flush: 1 new classes", "generation_number": 2}


class Rig:
    """A control topic that the test turns by hand; a second one on the same directory is a restart."""

    def __init__(self, directory: Path, secret: str | None = None) -> None:
        self.rig = SessionRig(directory / "state")
        self.log = EmbeddedLog(directory / "topics.db", self.rig.clock)
        self.control = ScriptedControl(STREAM)
        self.reader, self.sink = EmbeddedReader(self.log), EmbeddedSink(self.log)
        self.secret = secret

    def topic(self, **parts: Any) -> ControlTopic:
        """Make the topic's owner, with some parts replaced."""
        values: dict[str, Any] = {
            "letters": LETTERS,
            "secret": self.secret,
            "remembered_seconds": REMEMBERED_SECONDS,
            "events": OutboxEvents([STREAM]),
            "reader": self.reader,
            "control": self.control,
            "sink": self.sink,
            "state": self.rig.state,
            "metrics": self.rig.metrics,
            "clock": self.rig.clock,
            "random_source": random.Random(1),
        }
        return ControlTopic(STREAM, TOPIC, **values | parts)

    def send(self, name: str, command_id: str | None = None, **fields: Any) -> Message:
        """Append a command, signed if there is a secret."""
        values = {"schema_version": 1, "id": command_id or name, "stream": STREAM, "command": name, **fields}
        message = command_message(COMMANDS.validate_python(values), self.secret)
        # Another producer's idempotency is its own affair: the daemon must do without.
        self.log.append(TOPIC, [Message(message.value, message.key, message.headers)])
        return message

    def calls(self) -> list[tuple[str, object]]:
        """Return what was carried out."""
        return self.control.calls

    def letters(self) -> list[Record]:
        """Return the dead letters."""
        return self.log.read(LETTERS, 0, 0, 100)

    def counted(self, outcome: str) -> float:
        """Return the metric."""
        return self.rig.sample("accrete_control_commands_total", outcome=outcome)

    def close(self) -> None:
        """Give everything back."""
        self.rig.close()
        self.log.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Return a rig whose topic has been seen before any command."""
    made = Rig(tmp_path)
    made.topic().turn()
    yield made
    made.close()


def test_every_command_is_carried_out_in_order(rig: Rig) -> None:
    """Each reaches the daemon's control with its argument, and the decision log says what came of it."""
    rig.send("flush")
    rig.send("pause")
    rig.send("resume")
    rig.send("promote", generation="2")
    rig.send("rollback")
    rig.send("forget", label="cat")
    rig.send("remember", label="cat")
    assert rig.topic().turn() == POLL_SECONDS
    assert rig.calls() == [
        ("flush", None),
        ("pause", None),
        ("resume", None),
        ("rollback", "2"),
        ("rollback", None),
        ("forget", "cat"),
        ("remember", "cat"),
    ]
    decisions = [d for d in rig.rig.state.decisions(STREAM, 10) if d.kind == KIND]
    assert [d.policy for d in decisions][::-1] == [
        "flush",
        "pause",
        "resume",
        "promote",
        "rollback",
        "forget",
        "remember",
    ]
    assert all(d.fired for d in decisions)
    assert decisions[-1].reason == "flush: 1 new classes"
    assert rig.counted("done") == 7


def test_a_command_is_carried_out_once_over_restarts(tmp_path: Path, rig: Rig) -> None:
    """The next start goes on behind it."""
    rig.send("flush")
    rig.topic().turn()
    rig.close()
    again = Rig(tmp_path)
    again.send("pause")
    again.topic().turn()
    assert again.calls() == [("pause", None)]
    again.close()


def test_killed_in_a_command_it_is_not_repeated(tmp_path: Path, rig: Rig) -> None:
    """At most once: a rollback done twice would go back two generations."""
    rig.send("rollback")
    rig.control.killed = True
    with pytest.raises(KeyboardInterrupt):
        rig.topic().turn()
    rig.close()
    again = Rig(tmp_path)
    again.topic().turn()
    assert again.calls() == []
    again.close()


def test_an_id_counts_once(rig: Rig) -> None:
    """A producer that retries, or somebody who repeats a message, has no second effect."""
    for _ in range(3):
        rig.send("rollback", command_id="one")
    rig.topic().turn()
    assert rig.calls() == [("rollback", None)]
    assert rig.counted("duplicate") == 2


def test_what_cannot_be_done_is_said_and_does_not_stop_the_rest(rig: Rig) -> None:
    """The daemon's refusal is in the decision log; the next command is carried out."""
    rig.send("promote", generation="13")
    rig.send("flush")
    rig.topic().turn()
    assert rig.calls() == [("flush", None)]
    refused = rig.rig.state.decisions(STREAM, 2)[-1]
    assert (refused.policy, refused.fired, refused.reason) == (
        "promote",
        False,
        "generation 13 does not load",
    )
    assert (rig.counted("failed"), rig.counted("done")) == (1, 1)


def test_a_new_state_leaves_old_commands_alone(tmp_path: Path) -> None:
    """What lay in the topic before was meant for another state; what comes after is carried out."""
    rig = Rig(tmp_path)
    rig.send("rollback")
    topic = rig.topic()
    topic.turn()
    rig.send("flush")
    topic.turn()
    assert rig.calls() == [("flush", None)]
    rig.close()


def test_a_topic_that_appears_later_is_read_from_its_beginning(rig: Rig) -> None:
    """The first command makes the topic, and is not lost by that."""
    assert rig.log.extents(TOPIC) == {}
    rig.send("flush")
    rig.topic().turn()
    assert rig.calls() == [("flush", None)]


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        (b"not json", DeadLetterReason.BAD_ENVELOPE, "JSON"),
        (None, DeadLetterReason.BAD_ENVELOPE, "JSON"),
        (b'{"schema_version": 1}', DeadLetterReason.BAD_ENVELOPE, "command"),
        (b'{"schema_version": 2, "command": "flush"}', DeadLetterReason.UNKNOWN_SCHEMA, "knows 1"),
        (
            b'{"schema_version": 1, "id": "1", "stream": "s", "command": "merge", "label": "cat"}',
            DeadLetterReason.UNSUPPORTED_COMMAND,
            "'merge' is not supported: use one of flush",
        ),
        (b'{"schema_version": 1, "stream": "s", "command": "flush"}', DeadLetterReason.BAD_ENVELOPE, "id"),
        (
            b'{"schema_version": 1, "id": "1", "stream": "other", "command": "flush"}',
            DeadLetterReason.BAD_ENVELOPE,
            "for stream 'other'",
        ),
        (
            b'{"schema_version": 1, "id": "1", "stream": "s", "command": "promote"}',
            DeadLetterReason.BAD_ENVELOPE,
            "generation",
        ),
        (
            b'{"schema_version": 1, "id": "1", "stream": "s", "command": "flush", "critical": ["until"]}',
            DeadLetterReason.UNKNOWN_SCHEMA,
            "until",
        ),
    ],
)
def test_bad_commands_are_dead_letters(
    rig: Rig, value: bytes | None, reason: DeadLetterReason, words: str
) -> None:
    """Each goes to the stream's dead letters with its reason, and the next one is carried out."""
    rig.log.append(TOPIC, [Message(value, key=b"k")])
    rig.send("flush", command_id="good")
    rig.topic().turn()
    (letter,) = rig.letters()
    facts = dead_letter_facts(letter)
    assert facts.reason == reason
    assert words in facts.message
    assert facts.source_topic == TOPIC
    assert rig.calls() == [("flush", None)]
    assert rig.counted("dead_lettered") == 1
    assert rig.rig.sample("accrete_dead_letters_total", reason=reason.value) == 1


def test_with_a_secret_only_signed_commands_count(tmp_path: Path) -> None:
    """Unsigned, signed with another key, or changed afterwards: dead letters, nothing is done."""
    rig = Rig(tmp_path, SECRET)
    rig.topic().turn()
    good = rig.send("flush")
    signature = good.headers[SIGNATURE]
    other = command_message(COMMANDS.validate_json(good.value or b""), "another secret, as long")
    rig.log.append(TOPIC, [Message(good.value), other])
    rig.log.append(TOPIC, [Message((good.value or b"").replace(b"flush", b"pause"), headers=good.headers)])
    rig.topic().turn()
    assert rig.calls() == [("flush", None)]
    assert [dead_letter_facts(x).reason for x in rig.letters()] == ["bad_signature"] * 3
    assert SECRET.encode() not in b"".join(x.headers["accrete-error-message"] for x in rig.letters())
    assert signature.startswith(b"sha256=")
    rig.close()


def test_a_letter_that_is_replayed_keeps_its_signature(tmp_path: Path) -> None:
    """A command refused for want of a signature is not mended by a replay; one of a newer release may be."""
    rig = Rig(tmp_path, SECRET)
    rig.topic().turn()
    message = rig.send("flush")
    record = rig.log.read(TOPIC, 0, 0, 1)[0]
    rig.topic(secret="a secret from before the change").turn()
    again = replayed_message(rig.letters()[0])
    assert again.headers[SIGNATURE] == message.headers[SIGNATURE]
    assert parse_command(record, STREAM, SECRET).command == "flush"
    with pytest.raises(DeadLetter):
        parse_command(record, STREAM, SECRET + "!")
    rig.close()


def test_dead_letters_come_before_the_offset(rig: Rig) -> None:
    """While the log takes no letter, the command stays the next one."""
    rig.log.append(TOPIC, [Message(b"bad")])
    flaky = FlakySink(1)
    topic = rig.topic(sink=flaky)
    assert topic.turn() < POLL_SECONDS
    assert rig.rig.state.next_offsets(STREAM)[Place(TOPIC, 0)] == 0
    topic.turn()
    assert len(flaky.sent) == 1
    assert rig.rig.state.next_offsets(STREAM)[Place(TOPIC, 0)] == 1


def test_an_outage_is_waited_out(rig: Rig) -> None:
    """The commands that came meanwhile are carried out afterwards."""

    class Away(EmbeddedReader):
        outages = 2

        def extents(self, topic: str) -> Mapping[int, Extent]:
            if self.outages:
                self.outages -= 1
                raise SourceUnavailable("the log is away")
            return super().extents(topic)

    rig.send("flush")
    topic = rig.topic(reader=Away(rig.log))
    assert 0 < topic.turn() <= 0.5 < topic.turn()
    topic.turn()
    assert rig.calls() == [("flush", None)]


def test_a_topic_made_anew_is_read_from_its_beginning(rig: Rig) -> None:
    """The stored offset lies behind the new log's end; ids still count once."""
    rig.rig.state.take_command(STREAM, Place(TOPIC, 0), 100, "old")
    rig.send("flush")
    rig.send("pause", command_id="old")
    rig.topic().turn()
    assert rig.calls() == [("flush", None)]


def test_a_command_that_is_older_than_its_id_is_remembered_is_refused(rig: Rig) -> None:
    """Found after a long time, or put back into the topic, it is a dead letter and is not carried out."""
    rig.send("flush")
    rig.rig.clock.advance(REMEMBERED_SECONDS + 1)
    rig.send("pause")
    rig.topic().turn()
    assert rig.calls() == [("pause", None)]
    (letter,) = rig.letters()
    assert dead_letter_facts(letter).reason == "expired_command"
    assert "retention.command_id_days" in dead_letter_facts(letter).message


def test_a_signed_command_is_as_old_as_it_says(tmp_path: Path) -> None:
    """Sent again under another time of the log it is refused; if it names no time, its id stays for ever."""
    rig = Rig(tmp_path, SECRET)
    rig.topic().turn()
    sent_at = datetime.fromtimestamp(rig.rig.clock.now(), UTC)
    dated = rig.send("flush", sent_at=sent_at)
    undated = rig.send("pause")
    rig.topic().turn()
    rig.rig.clock.advance(REMEMBERED_SECONDS + 1)
    assert rig.rig.state.forget_commands(rig.rig.clock.now() - REMEMBERED_SECONDS, 10) == 1
    rig.log.append(TOPIC, [Message(again.value, again.key, again.headers) for again in (dated, undated)])
    rig.topic().turn()
    assert rig.calls() == [("flush", None), ("pause", None)]
    assert [dead_letter_facts(letter).reason for letter in rig.letters()] == ["expired_command"]
    assert rig.counted("duplicate") == 1
    rig.close()


def test_an_event_tells_what_came_of_each_command(rig: Rig) -> None:
    """With the command's id, so that whoever sent it can wait for it; a bad one has none to trust."""
    rig.send("flush", command_id="one")
    rig.send("promote", command_id="two", generation="13")
    rig.log.append(TOPIC, [Message(b"nonsense")])
    rig.topic().turn()
    events = [pending.event for pending in rig.rig.state.pending_events(STREAM, 10)]
    assert [event.subject for event in events] == ["commands/one", "commands/two"]
    assert [event.data["done"] for event in events] == [True, False]
    assert [event.data["reason"] for event in events] == [
        "flush: 1 new classes",
        "generation 13 does not load",
    ]


def test_the_thread_carries_out_and_ends_when_told(rig: Rig) -> None:
    """Start, stop, join; nothing has failed."""
    rig.send("flush")
    topic = rig.topic()
    topic.start()
    while not rig.calls():
        assert topic.failed is None
    topic.stop()
    assert topic.join(10)
    assert topic.failed is None
