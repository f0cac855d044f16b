"""Who writes in transactions: what is visible is not written again, whichever record of it is behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from daemon.events.publisher import EventPublisher
from daemon.metrics import TRANSACTION_OUTCOMES, Metrics
from daemon.serving.request_topic import RequestTopic
from daemon.settings import RequestTopicSettings, StreamSettings
from daemon.sources import open_transactions
from daemon.sources.base import Message, Place
from daemon.sources.embedded import EmbeddedReader
from daemon.sources.log import EmbeddedLog
from daemon.sources.transactions import Position
from tests.support.http_service import RunningService, encoded_image, http_service
from tests.support.ingest import FlakySink
from tests.support.servables import LinearServable
from tests.support.session_rig import STREAM, SessionRig
from tests.support.transactions import MemoryTransactions
from tests.unit.test_cli import accrete, configuration
from tests.unit.test_events import kinds

REQUESTS, PREDICTIONS, EVENTS = "s.requests", "s.predictions", "s.events"
ASKED, NOTED = Place(REQUESTS, 0), Place(EVENTS, 0)
KAFKA = {"kind": "kafka", "bootstrap_servers": ["b:1"], "topic": "t", "group_id": "g"}


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    """Return a service that answers."""
    with http_service() as running:
        running.slot.publish(LinearServable(1), 1)
        yield running


class Answering:
    """A request topic with transactions in memory; each `topic()` on it is a restart."""

    def __init__(self, directory: Path, service: RunningService) -> None:
        self.rig = SessionRig(directory / "state")
        self.log = EmbeddedLog(directory / "topics.db", self.rig.clock)
        self.service = service
        self.transactions = MemoryTransactions()
        self.sink = FlakySink()
        self.log.append(REQUESTS, [Message(encoded_image(n)) for n in range(5)])

    def topic(self, transactions: MemoryTransactions | None) -> RequestTopic:
        """Return the topic's owner."""
        return RequestTopic(
            STREAM,
            REQUESTS,
            PREDICTIONS,
            settings=RequestTopicSettings(at_once=2),
            reader=EmbeddedReader(self.log),
            service=self.service.service,
            sink=self.sink,
            state=self.rig.state,
            metrics=self.rig.metrics,
            clock=self.rig.clock,
            transactions=transactions,
        )

    def stored(self) -> int:
        """Return the state's offset."""
        return self.rig.state.next_offsets(STREAM)[ASKED]

    def keys(self) -> list[str | None]:
        """Return the keys of the answers written in transactions."""
        return [message.idempotency_key for topic, message in self.transactions.sent if topic == PREDICTIONS]


@pytest.fixture
def answering(tmp_path: Path, service: RunningService) -> Iterator[Answering]:
    """Return a request topic's parts, with five requests."""
    made = Answering(tmp_path, service)
    yield made
    made.rig.close()
    made.log.close()


def test_answers_and_offset_are_one_transaction(answering: Answering) -> None:
    """The state follows, and the sink writes nothing."""
    answering.topic(answering.transactions).turn()
    assert answering.keys() == ["s.requests/0/0", "s.requests/0/1"]
    assert answering.transactions.positions == {ASKED: Position(2)}
    assert answering.stored() == 2
    assert answering.sink.sent == []


def test_killed_behind_the_commit_the_next_start_answers_nothing_twice(answering: Answering) -> None:
    """The state is behind by a transaction, and the position counts."""
    answering.transactions.killed = True
    with pytest.raises(KeyboardInterrupt):
        answering.topic(answering.transactions).turn()
    assert ASKED not in answering.rig.state.next_offsets(STREAM)
    again = answering.topic(answering.transactions)
    for _ in range(3):
        again.turn()
    assert answering.keys() == [f"s.requests/0/{n}" for n in range(5)]
    assert answering.stored() == 5


def test_a_transaction_that_failed_is_made_again(answering: Answering) -> None:
    """Neither offset has moved."""
    answering.transactions.failures = 1
    topic = answering.topic(answering.transactions)
    assert topic.turn() > 0
    assert ASKED not in answering.rig.state.next_offsets(STREAM)
    topic.turn()
    assert answering.keys() == ["s.requests/0/0", "s.requests/0/1"]


def test_switched_off_and_on_again_nothing_is_answered_twice(answering: Answering) -> None:
    """Without transactions the state alone goes on; with them again, the older position does not count."""
    answering.topic(answering.transactions).turn()
    answering.topic(None).turn()
    answering.topic(answering.transactions).turn()
    assert answering.keys() == [f"s.requests/0/{n}" for n in (0, 1, 4)]
    assert [message.idempotency_key for _, message in answering.sink.sent] == [
        "s.requests/0/2",
        "s.requests/0/3",
    ]


def publisher(rig: SessionRig, transactions: MemoryTransactions) -> EventPublisher:
    """Return a publisher that the test turns by hand."""
    return EventPublisher(
        STREAM,
        EVENTS,
        state=rig.state,
        sink=FlakySink(),
        metrics=rig.metrics,
        clock=rig.clock,
        transactions=transactions,
    )


def ids(transactions: MemoryTransactions) -> list[str]:
    """Return the ids of the events that were written."""
    return [message.headers["ce_id"].decode() for _, message in transactions.sent]


def test_events_are_published_with_the_last_ones_id(tmp_path: Path) -> None:
    """The outbox is empty, and the position names its last event."""
    rig = SessionRig(tmp_path, events=True)
    rig.promote(0, "a")
    transactions = MemoryTransactions()
    publisher(rig, transactions).turn()
    assert len(ids(transactions)) == 4
    assert transactions.positions[NOTED].note == ids(transactions)[-1]
    assert kinds(rig) == []
    assert rig.sample("accrete_events_pending") == 0
    rig.close()


def test_events_of_a_commit_that_the_state_has_not_heard_of_are_not_published_again(tmp_path: Path) -> None:
    """They leave the outbox at the next start; those that came later are published."""
    rig = SessionRig(tmp_path, events=True)
    rig.promote(0, "a")
    transactions = MemoryTransactions()
    transactions.killed = True
    with pytest.raises(KeyboardInterrupt):
        publisher(rig, transactions).turn()
    assert len(kinds(rig)) == 4
    rig.promote(1, "b")
    publisher(rig, transactions).turn()
    assert kinds(rig) == []
    assert len(ids(transactions)) == len(set(ids(transactions))) == 8
    rig.close()


def test_a_state_made_anew_publishes_although_its_numbers_repeat(tmp_path: Path) -> None:
    """It is the id that says what is published: row numbers begin again, and nothing must be lost."""
    transactions = MemoryTransactions()
    for directory in ("first", "second"):
        rig = SessionRig(tmp_path / directory, events=True)
        rig.promote(0, "a")
        publisher(rig, transactions).turn()
        assert kinds(rig) == []
        rig.close()
    assert len(ids(transactions)) == len(set(ids(transactions))) == 8


def test_what_the_thread_owns_is_closed_with_it(tmp_path: Path, answering: Answering) -> None:
    """Of the publisher and of the request topic."""
    rig = SessionRig(tmp_path / "other")
    for owner in (publisher(rig, answering.transactions), answering.topic(answering.transactions)):
        owner.stop()
        owner.start()
        assert owner.join(10)
    assert answering.transactions.closed == 2
    rig.close()


@pytest.mark.parametrize("section", ["events", "requests"])
@pytest.mark.parametrize("source", [{"kind": "embedded"}, {"kind": "folder", "path": "/p"}])
def test_transactions_without_kafka_are_refused(section: str, source: dict[str, Any]) -> None:
    """The mistake names the field, the source and the remedy."""
    with pytest.raises(ValidationError) as caught:
        StreamSettings.model_validate({"source": source, section: {"transactions": True}})
    (mistake,) = caught.value.errors()
    assert f"{section}.transactions is true, but source.kind is {source['kind']}" in mistake["msg"]
    assert f"set {section}.transactions to false" in mistake["msg"]


@pytest.mark.parametrize("command", [("config", "check"), ("doctor",)])
def test_the_command_line_refuses_them_too(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Before anything is examined or started; the line names the stream."""
    path = configuration(tmp_path, streams={"parts": {"events": {"transactions": True}}})
    result = accrete(*command, "-c", path)
    assert result.exit_code == 2
    assert "streams.parts" in result.output
    assert "events.transactions is true, but source.kind is embedded: only Kafka has" in result.output


def test_transactions_are_off_unless_asked_for() -> None:
    """Each section has its own switch."""
    off = StreamSettings.model_validate({"source": KAFKA})
    on = StreamSettings.model_validate({"source": KAFKA, "requests": {"transactions": True}})
    assert open_transactions("s", "requests", off, Metrics()) is None
    assert open_transactions("s", "events", on, Metrics()) is None
    opened = open_transactions("s", "requests", on, Metrics())
    assert opened is not None
    opened.close()


def test_every_outcome_is_there_from_the_start() -> None:
    """So that a rate sees the first one that is fenced."""
    metrics = Metrics()
    metrics.initialise(["s"], [])
    for outcome in TRANSACTION_OUTCOMES:
        labels = {"stream": "s", "outcome": outcome}
        assert metrics.registry.get_sample_value("accrete_transactions_total", labels) == 0
