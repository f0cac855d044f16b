"""Transactions on Apache Kafka: output and progress visible together, whatever is killed or stopped when."""

from __future__ import annotations

import multiprocessing
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from daemon.errors import FencedProducer, MessageRefused, SourceUnavailable
from daemon.settings import KafkaSource as KafkaSettings
from daemon.sources.base import Message, Place, Record, scan
from daemon.sources.kafka import KafkaSink
from daemon.sources.kafka.reader import KafkaReader, group_positions
from daemon.sources.kafka.transactions import KafkaTransactions, TransactionalProducer, TransactionOutcome
from daemon.sources.transactions import Position
from tests.support import answering_process
from tests.support.answering_process import EVENTS
from tests.support.http_service import encoded_image
from tests.support.kafka_broker import KafkaBroker
from tests.support.kafka_clients import eventually, kafka_settings

pytestmark = pytest.mark.integration

ASKED = 10


# What a worker imports takes seconds: one process does it, and the workers are its forks.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.support.answering_process"])


class Worker:
    """A process that answers requests or publishes events; see `tests.support.answering_process`."""

    def __init__(self, settings: KafkaSettings, what: str, state: Path, on: bool, halt: str) -> None:
        state.mkdir(exist_ok=True)
        self._pipe, other = PROCESSES.Pipe()
        self._process = PROCESSES.Process(
            target=answering_process.work, args=(what, state, settings, on, halt, other), daemon=True
        )
        self._process.start()
        other.close()

    def wait_halted(self) -> None:
        """Wait until it is where it was told to halt."""
        assert self._pipe.recv() == "halted"

    def go_on(self) -> None:
        """Let it go on from there."""
        self._pipe.send("go on")

    def signal(self, number: signal.Signals) -> None:
        """Stop it, let it run again, or kill it."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)
        if number is signal.SIGKILL:
            self._process.join(10)

    def ended(self) -> str:
        """Wait until it has ended by itself, and return what it said."""
        said = self._pipe.recv()
        assert isinstance(said, str)
        return said

    def close(self) -> None:
        """End it, if it has not ended yet."""
        self._process.kill()
        self._process.join(10)
        self._pipe.close()


class Cluster:
    """The topics of one stream, as readers of either isolation level see them."""

    def __init__(self, settings: KafkaSettings, state: Path) -> None:
        self.settings, self.state = settings, state
        self.workers: list[Worker] = []

    def ask(self) -> None:
        """Append requests."""
        messages = [
            Message(encoded_image(n), headers={"id": b"%d" % n, "content-type": b"image/png"})
            for n in range(ASKED)
        ]
        sink = KafkaSink(self.settings)
        sink.send(f"{self.settings.topic}.requests", messages)
        sink.close()

    def worker(self, what: str, *, on: bool = True, halt: str = "never", state: str = "state") -> Worker:
        """Start a process on a state."""
        started = Worker(self.settings, what, self.state / state, on, halt)
        self.workers.append(started)
        return started

    def see(self, topic: str, isolation: str = "read_committed") -> list[Record]:
        """Read a topic as a consumer of that isolation level."""
        reader = KafkaReader(self.settings.model_copy(update={"isolation_level": isolation}))
        try:
            return list(scan(reader, f"{self.settings.topic}.{topic}"))
        finally:
            reader.close()

    def keys(self, topic: str, isolation: str = "read_committed") -> list[str]:
        """Return what tells the messages of an output topic apart, in order."""
        header = "ce_id" if topic == "events" else "idempotency-key"
        return [record.headers[header].decode() for record in self.see(topic, isolation)]

    def position(self, what: str) -> Position | None:
        """Return what the private group has committed, without waiting for what is pending."""
        settings = self.settings.model_copy(update={"isolation_level": "read_uncommitted"})
        topic = f"{self.settings.topic}.{'requests' if what == 'requests' else 'events'}"
        place = Place(topic, 0)
        return group_positions(settings, f"{self.settings.group_id}.s.{what}", [place]).get(place)

    def answered(self) -> int:
        """Return how far the committed offset says that requests are answered."""
        position = self.position("requests")
        return 0 if position is None else position.offset

    def wait_answers(self, count: int = ASKED) -> None:
        """Wait until a reader of committed records sees so many answers."""
        assert eventually(lambda: len(self.see("predictions")) >= count, 120)


@pytest.fixture
def cluster(kafka_address: str, tmp_path: Path) -> Iterator[Cluster]:
    """Return a stream's topics, not made yet."""
    made = Cluster(kafka_settings(kafka_address, f"photos-{uuid.uuid4().hex[:8]}"), tmp_path)
    yield made
    for worker in made.workers:
        worker.close()


@pytest.mark.parametrize("halt", ["begin", "commit", "stored"])
def test_killed_anywhere_each_request_has_one_answer(cluster: Cluster, halt: str) -> None:
    """At the kill, and after it, a reader of committed records sees as many answers as offsets."""
    cluster.ask()
    killed = cluster.worker("requests", halt=halt)
    killed.wait_halted()
    # Four go at once. Those sent before the commit are in the log, and nobody who should not sees them.
    sent, visible = {"begin": (0, 0), "commit": (4, 0), "stored": (4, 4)}[halt]
    assert len(cluster.see("predictions", "read_uncommitted")) == sent
    assert eventually(lambda: len(cluster.see("predictions")) == cluster.answered() == visible)
    killed.signal(signal.SIGKILL)
    cluster.worker("requests")
    cluster.wait_answers()
    assert eventually(lambda: cluster.answered() == ASKED)
    keys = cluster.keys("predictions")
    assert keys == [f"{cluster.settings.topic}.requests/0/{n}" for n in range(ASKED)]


@pytest.mark.parametrize("halt", ["begin", "commit"])
def test_a_daemon_that_comes_back_too_late_is_fenced(cluster: Cluster, halt: str) -> None:
    """Stopped, replaced and let run again, it ends with the reason, and nothing it does is seen."""
    cluster.ask()
    late = cluster.worker("requests", halt=halt, state="late")
    late.wait_halted()
    late.signal(signal.SIGSTOP)
    cluster.worker("requests", state="next")
    cluster.wait_answers()
    late.signal(signal.SIGCONT)
    late.go_on()
    said = late.ended()
    assert "FencedProducer" in said
    assert "another daemon has taken over" in said
    assert "'committed': 0.0, 'aborted': 0.0, 'fenced': 1.0" in said
    assert cluster.keys("predictions") == [f"{cluster.settings.topic}.requests/0/{n}" for n in range(ASKED)]
    assert cluster.answered() == ASKED
    hidden = 4 if halt == "commit" else 0
    assert len(cluster.see("predictions", "read_uncommitted")) == ASKED + hidden


def test_without_transactions_a_kill_repeats_answers_under_the_same_key(cluster: Cluster) -> None:
    """At least once is what the default promises, and no more."""
    cluster.ask()
    killed = cluster.worker("requests", on=False, halt="stored")
    killed.wait_halted()
    killed.signal(signal.SIGKILL)
    cluster.worker("requests", on=False)
    cluster.wait_answers(ASKED + 4)
    keys = cluster.keys("predictions")
    assert keys[:4] == keys[4:8]
    assert keys[4:] == [f"{cluster.settings.topic}.requests/0/{n}" for n in range(ASKED)]
    assert cluster.position("requests") is None


@pytest.mark.parametrize(("on", "halt"), [(True, "commit"), (True, "stored"), (False, "stored")])
def test_killed_anywhere_each_event_comes_once(cluster: Cluster, on: bool, halt: str) -> None:
    """With transactions, that is; without them the same kill repeats events under their ids."""
    killed = cluster.worker("events", on=on, halt=halt)
    killed.wait_halted()
    killed.signal(signal.SIGKILL)
    assert len(cluster.see("events", "read_uncommitted")) == EVENTS
    assert on or cluster.position("events") is None
    again = cluster.worker("events", on=on, halt="stored")
    again.wait_halted()
    assert eventually(lambda: len(cluster.keys("events")) == (EVENTS if on else 2 * EVENTS))
    assert len(set(cluster.keys("events"))) == EVENTS


class Transactions:
    """Transactions in this process, what became of them, and what a reader sees."""

    def __init__(
        self,
        cluster: Cluster,
        new_producer: Callable[..., TransactionalProducer] = TransactionalProducer,
    ) -> None:
        self.cluster = cluster
        self.topic = f"{cluster.settings.topic}.predictions"
        self.place = Place(self.topic, 0)
        self.outcomes: list[TransactionOutcome] = []
        self.open = KafkaTransactions(
            cluster.settings, f"{self.topic}.name", count=self.outcomes.append, new_producer=new_producer
        )

    def send(self, values: Sequence[bytes], offset: int, note: str = "") -> None:
        """Send values, and an offset of the topic itself."""
        self.open.send(self.topic, [Message(v) for v in values], self.place, Position(offset, note))

    def shown(self, *values: bytes) -> bool:
        """Wait until a reader of committed records sees exactly this; the markers follow the commit."""
        return eventually(
            lambda: [record.value for record in self.cluster.see("predictions")] == list(values)
        )


@pytest.fixture
def transactions(cluster: Cluster) -> Iterator[Transactions]:
    """Return transactions of a name of their own."""
    made = Transactions(cluster)
    yield made
    made.open.close()


def test_a_position_comes_with_its_note_from_the_next_owner_too(
    cluster: Cluster, transactions: Transactions
) -> None:
    """None before the first; the last one after a close, and the earlier owner is fenced by the next."""
    assert transactions.open.position(transactions.place) is None
    transactions.send([b"a"], 7, "seven")
    assert transactions.open.position(transactions.place) == Position(7, "seven")
    after = Transactions(cluster)
    assert after.open.position(after.place) == Position(7, "seven")
    with pytest.raises(FencedProducer, match=r"group_id \(or group_instance_id\) of its own"):
        transactions.send([b"b"], 8)
    after.send([b"c"], 9)
    after.open.close()
    assert transactions.shown(b"a", b"c")
    assert (transactions.outcomes, after.outcomes) == (["committed", "fenced"], ["committed"])


def test_a_daemon_that_was_away_does_not_take_back_what_another_has_taken_over(
    cluster: Cluster, transactions: Transactions
) -> None:
    """Connecting again would fence the other one, so the positions are looked at first."""
    transactions.send([b"a"], 1)
    # What an outage does to the connection.
    transactions.open.close()
    other = Transactions(cluster)
    other.send([b"b"], 2)
    with pytest.raises(FencedProducer, match="another daemon has taken over"):
        transactions.send([b"c"], 2)
    other.send([b"d"], 3)
    other.open.close()
    assert other.shown(b"a", b"b", b"d")
    assert other.outcomes == ["committed", "committed"]


def test_an_outage_between_transactions_changes_nothing(transactions: Transactions) -> None:
    """The next one connects anew and goes on."""
    for n in range(1, 4):
        transactions.send([b"%d" % n], n)
        transactions.open.close()
    assert transactions.open.position(transactions.place) == Position(3)
    assert transactions.shown(b"1", b"2", b"3")


def test_positions_that_the_cluster_has_forgotten_are_nobody_elses(
    cluster: Cluster, transactions: Transactions
) -> None:
    """Kafka drops the offsets of an idle group in time; that is no other daemon, and the next send works."""
    transactions.send([b"a"], 1)
    transactions.open.close()
    admin = KafkaAdminClient(bootstrap_servers=cluster.settings.bootstrap_servers)
    try:
        admin.delete_groups([f"{transactions.topic}.name"])
    finally:
        admin.close()
    transactions.send([b"b"], 2)
    assert transactions.shown(b"a", b"b")
    assert transactions.outcomes == ["committed", "committed"]


def test_a_refused_message_takes_the_whole_transaction_back(transactions: Transactions) -> None:
    """Neither its neighbours nor the offset are seen, and the next transaction is not held up."""
    transactions.send([b"before"], 1)
    with pytest.raises(MessageRefused, match=r"max\.message\.bytes"):
        transactions.send([b"small", os.urandom(2 * 2**20)], 2)
    assert transactions.open.position(transactions.place) == Position(1)
    transactions.send([b"after"], 3)
    assert transactions.shown(b"before", b"after")
    assert transactions.outcomes == ["committed", "aborted", "committed"]


def test_a_commit_that_nobody_confirmed_is_looked_up(cluster: Cluster, broker: KafkaBroker) -> None:
    """The broker falls silent at the commit; once it is back, both are there or both are not."""

    class LosesTheBroker(TransactionalProducer):
        frozen = False

        def commit_transaction(self) -> None:
            if not LosesTheBroker.frozen:
                LosesTheBroker.frozen = True
                broker.freeze()
            super().commit_transaction()

    doubtful = Transactions(cluster, LosesTheBroker)
    try:
        with pytest.raises(SourceUnavailable, match="not confirmed in a transaction"):
            doubtful.send([b"a"], 1)
    finally:
        broker.thaw()
    assert doubtful.outcomes == []
    position = None
    while not doubtful.outcomes:
        try:
            position = doubtful.open.position(doubtful.place)
        except SourceUnavailable:
            continue
    done = doubtful.outcomes == ["committed"]
    assert done or doubtful.outcomes == ["aborted"]
    assert position == (Position(1) if done else None)
    doubtful.send([b"b"], 2)
    assert doubtful.shown(*([b"a"] if done else []), b"b")
    doubtful.open.close()


def test_no_broker_is_said_in_time(cluster: Cluster) -> None:
    """Where nothing listens, nothing waits for ever."""
    settings = kafka_settings("127.0.0.1:9", "photos", connect_timeout_seconds=0.5)
    away = KafkaTransactions(settings, "n", count=lambda outcome: pytest.fail(outcome))
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:9"):
        away.position(Place("photos", 0))
    away.close()
