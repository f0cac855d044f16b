"""Ids are forgotten when their time is over, a few at a time, and nothing is done twice for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.errors import DeadLetter, DeadLetterReason
from daemon.events.base import NewEvent
from daemon.events.kinds import EventKind
from daemon.messages.command_age import check_age, command_date
from daemon.messages.control import COMMANDS
from daemon.metrics import Metrics
from daemon.retention import (
    COMMAND,
    DAY_SECONDS,
    IDS_AT_ONCE,
    MESSAGE_KEY,
    PAUSE_SECONDS,
    TURN_SECONDS,
    Retention,
    written_topics,
)
from daemon.settings import RetentionSettings, StreamSettings
from daemon.sources.base import Message, Place, Record
from daemon.sources.log import EmbeddedLog
from daemon.state import SqlState
from daemon.state.base import Decision
from tests.support.manual_clock import ManualClock

PLACE = Place("s.control", 0)
HORIZON = 90 * DAY_SECONDS


class Rig:
    """The thread's owner, turned by hand, and what it works with."""

    def __init__(self, directory: Path) -> None:
        self.clock = ManualClock(start=1e9)
        self.state = SqlState.open(directory, holdout_fraction={"s": 0.2}, clock=self.clock)
        self.log = EmbeddedLog(directory / "topics.db", self.clock)
        self.metrics = Metrics()
        self.retention = Retention(
            RetentionSettings(),
            written_topics("s", StreamSettings()),
            state=self.state,
            topics=self.log,
            metrics=self.metrics,
            clock=self.clock,
        )

    def take(self, command_id: str, dated: float | None) -> bool:
        """Take a command."""
        return self.state.take_command("s", PLACE, 1, command_id, dated)

    def write(self, topic: str, key: str) -> int:
        """Append a message with a key and return its offset."""
        return self.log.append(topic, [Message(b"x", idempotency_key=key)])[0]

    def metric(self, name: str, kind: str) -> float | None:
        """Return a metric."""
        return self.metrics.registry.get_sample_value(name, {"kind": kind})

    def close(self) -> None:
        """Give everything back."""
        self.log.close()
        self.state.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Return a rig whose first turn, which forgets nothing, is over."""
    made = Rig(tmp_path)
    assert made.retention.turn() == TURN_SECONDS
    yield made
    made.close()


def test_ids_are_remembered_for_their_time_and_no_longer(rig: Rig) -> None:
    """Just before the horizon a command and a letter are recognised; after it their ids are gone."""
    now = rig.clock.now()
    assert rig.take("a", now)
    assert rig.write("s.dlq", "place") == 0
    rig.clock.advance(30 * DAY_SECONDS - 1)
    rig.retention.turn()
    assert rig.write("s.dlq", "place") == 0
    rig.clock.advance(2)
    rig.retention.turn()
    assert rig.write("s.dlq", "place") == 1
    rig.clock.advance(60 * DAY_SECONDS - 2)
    rig.retention.turn()
    assert not rig.take("a", now)
    rig.clock.advance(2)
    rig.retention.turn()
    assert rig.state.command_count() == 0


def test_the_first_turn_forgets_nothing(tmp_path: Path) -> None:
    """A daemon that was down for a year writes once more what it had written just before the kill."""
    first = Rig(tmp_path)
    first.write("s.dlq", "place")
    first.close()
    again = Rig(tmp_path)
    again.clock.advance(365 * DAY_SECONDS)
    again.retention.turn()
    assert again.write("s.dlq", "place") == 0
    assert again.metric("accrete_remembered_ids", MESSAGE_KEY) == 1
    again.retention.turn()
    assert again.metric("accrete_remembered_ids", MESSAGE_KEY) == 0
    again.close()


def test_what_must_not_be_forgotten_is_not(rig: Rig) -> None:
    """Undated commands, keys of a labelled topic, and events that nobody has published stay for ever."""
    rig.take("undated", None)
    rig.write("s", "a file's digest")
    event = NewEvent("e", EventKind.SESSION_STARTED, "sessions/0", rig.clock.now(), {})
    rig.state.record_decision("s", Decision(1.0, "trigger", "flush", True, "now"), [event])
    rig.clock.advance(10_000 * DAY_SECONDS)
    rig.retention.turn()
    assert not rig.take("undated", None)
    assert rig.write("s", "a file's digest") == 0
    assert rig.state.pending_event_count("s") == 1


def test_many_ids_are_forgotten_a_few_at_a_time(rig: Rig) -> None:
    """No transaction is long; turns follow each other soon until nothing is left, and are counted."""
    count = 2 * IDS_AT_ONCE + 10
    rig.log.append("s.events", [Message(b"", idempotency_key=str(n)) for n in range(count)])
    rig.take("a", rig.clock.now())
    rig.clock.advance(91 * DAY_SECONDS)
    left = []
    waits = []
    for _ in range(3):
        waits.append(rig.retention.turn())
        left.append(rig.log.key_count())
    assert left == [count - IDS_AT_ONCE, count - 2 * IDS_AT_ONCE, 0]
    assert waits == [PAUSE_SECONDS, PAUSE_SECONDS, TURN_SECONDS]
    assert rig.metric("accrete_forgotten_ids_total", MESSAGE_KEY) == count
    assert rig.metric("accrete_forgotten_ids_total", COMMAND) == 1
    assert rig.metric("accrete_remembered_ids", COMMAND) == 0


@pytest.mark.parametrize(
    ("sent_at", "signed", "date"),
    [
        ("2001-09-09T01:46:40Z", True, 1e9),
        ("2001-09-09T01:46:40Z", False, 1e9),
        (None, True, None),
        (None, False, 5.0),
    ],
)
def test_a_signed_command_is_dated_by_what_its_signature_covers(
    sent_at: str | None, signed: bool, date: float | None
) -> None:
    """The log's own time is good enough only where anybody may send commands anyway."""
    values = {"schema_version": 1, "id": "1", "stream": "s", "command": "flush", "sent_at": sent_at}
    record = Record("s.control", 0, 0, None, b"", {}, timestamp=5.0)
    assert command_date(COMMANDS.validate_python(values), record, signed=signed) == date


def test_a_command_is_refused_before_its_id_may_be_forgotten(rig: Rig) -> None:
    """At every age a command is recognised or refused, so it is never carried out twice."""
    date = rig.clock.now()
    rig.take("a", date)
    for age in (0.0, HORIZON - 1, HORIZON, HORIZON + 1, 10 * HORIZON):
        rig.clock.advance(date + age - rig.clock.now())
        rig.retention.turn()
        if age <= HORIZON:
            check_age(date, rig.clock.now(), HORIZON)
            assert not rig.take("a", date)
            continue
        with pytest.raises(DeadLetter, match="send it anew") as refused:
            check_age(date, rig.clock.now(), HORIZON)
        assert refused.value.reason is DeadLetterReason.EXPIRED_COMMAND


def test_the_least_horizon_covers_the_control_topic() -> None:
    """Ids are kept for at least as long as the topic that `accrete topics create` makes."""
    with pytest.raises(ValueError, match="command_id_days"):
        RetentionSettings(command_id_days=29)
