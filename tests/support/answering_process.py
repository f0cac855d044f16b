"""Answer a request topic of Apache Kafka, or publish events to one; halts where a test wants it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from daemon.clock import SystemClock
from daemon.events.outbox import OutboxEvents
from daemon.events.publisher import EventPublisher
from daemon.messages.events import SessionStarted
from daemon.metrics import TRANSACTION_OUTCOMES, Metrics
from daemon.owner_thread import OwnerThread
from daemon.serving.request_topic import RequestTopic
from daemon.settings import KafkaSource, RequestTopicSettings
from daemon.sources.base import Place
from daemon.sources.kafka import KafkaSink
from daemon.sources.kafka.reader import KafkaReader
from daemon.sources.kafka.transactions import KafkaTransactions, TransactionalProducer
from daemon.state import SqlState
from daemon.state.outbox import add_events
from tests.support.http_service import http_service
from tests.support.servables import LinearServable

STREAM = "s"
EVENTS = 5


class Halt:
    """Where this process halts; it says so, and waits to be told to go on."""

    test: Connection

    @classmethod
    def here(cls) -> None:
        """Halt."""
        cls.test.send("halted")
        cls.test.recv()


class HaltsBeforeBegin(TransactionalProducer):
    """Halts when a transaction is about to begin."""

    def begin_transaction(self) -> None:
        """Halt, then begin."""
        Halt.here()
        super().begin_transaction()


class HaltsBeforeCommit(TransactionalProducer):
    """Halts when everything is sent and nothing is committed."""

    def commit_transaction(self) -> None:
        """Halt, then commit."""
        Halt.here()
        super().commit_transaction()


class HaltsBeforeStored(SqlState):
    """Halts before what has been sent is noted."""

    def move_offset(self, stream: str, place: Place, next_offset: int) -> None:
        """Halt, then note it."""
        Halt.here()
        super().move_offset(stream, place, next_offset)

    def events_published(self, stream: str, seqs: Sequence[int]) -> None:
        """Halt, then note it."""
        Halt.here()
        super().events_published(stream, seqs)


PRODUCERS = {"begin": HaltsBeforeBegin, "commit": HaltsBeforeCommit}


def write_events(state: SqlState) -> None:
    """Put events into the outbox at the first start; a note in the state tells that it was the first."""
    note = Place("written", 0)
    if note in state.next_offsets(STREAM):
        return
    facts = [
        SessionStarted(stream=STREAM, session=n, new_classes=[], method="ncm", parent=None, reason="")
        for n in range(EVENTS)
    ]
    with state._write() as connection:
        add_events(connection, STREAM, OutboxEvents([STREAM]).of(0.0, *facts))
    SqlState.move_offset(state, STREAM, note, 1)


def owner(
    what: str, cluster: KafkaSource, service: Any, parts: Mapping[str, Any]
) -> RequestTopic | EventPublisher:
    """Return what works in this process."""
    if what == "events":
        write_events(parts["state"])
        return EventPublisher(STREAM, f"{cluster.topic}.events", **parts)
    return RequestTopic(
        STREAM,
        f"{cluster.topic}.requests",
        f"{cluster.topic}.predictions",
        settings=RequestTopicSettings(enabled=True, at_once=4),
        reader=KafkaReader(cluster),
        service=service,
        **parts,
    )


def work(what: str, directory: Path, cluster: KafkaSource, on: bool, where: str, test: Connection) -> None:
    """Work until killed; otherwise tell the test what ended it, and what became of the transactions.

    Args:
        what: `requests` or `events`.
        directory: of the state.
        cluster: its settings.
        on: whether there are transactions.
        where: to halt: before a transaction's `begin` or its `commit`, before what was sent is `stored`, or
            `never`.
        test: the other end of the test's pipe.
    """
    Halt.test = test
    clock, metrics = SystemClock(), Metrics()
    metrics.initialise([STREAM], [])
    transactions = KafkaTransactions(
        cluster,
        f"{cluster.group_id}.{STREAM}.{what}",
        count=lambda outcome: metrics.transactions.labels(STREAM, outcome).inc(),
        new_producer=PRODUCERS.get(where, TransactionalProducer),
    )
    state = HaltsBeforeStored if where == "stored" else SqlState
    parts = {
        "sink": KafkaSink(cluster),
        "state": state.open(directory, holdout_fraction={STREAM: 0.2}, clock=clock),
        "metrics": metrics,
        "clock": clock,
        "transactions": transactions if on else None,
    }
    with http_service() as service:
        service.slot.publish(LinearServable(1), 1)
        thread: OwnerThread = owner(what, cluster, service.service, parts)
        thread.start()
        thread.join()
    outcomes = {
        outcome: metrics.registry.get_sample_value(
            "accrete_transactions_total", {"stream": STREAM, "outcome": outcome}
        )
        for outcome in TRANSACTION_OUTCOMES
    }
    test.send(f"{type(thread.failed).__name__}: {thread.failed} {outcomes}")
