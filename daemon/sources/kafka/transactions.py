"""Kafka transactions: messages and the offset they answer become visible together.

What kafka-python's transactional producer does not do is done here:

- its calls wait for ever for a broker that is away; ours end with the transaction's time;
- it commits although a message was given up; here every message is confirmed before the commit is asked for;
- offsets of a failed transaction may go along with the next one; so a producer is used until its first
  failure;
- a broker before 2.7 makes it trade the epoch of a fenced producer for a fresh one; so transactions need
  2.7, and a producer that was fenced has no successor in this process.

The name of the transactions does three things. It is the `transactional.id`: who connects last owns it, and
everybody before is fenced. It is the consumer group that holds the positions; nobody joins that group, since
each daemon reads all partitions, so it is the id that fences and not the group's generation. And it is the
same after a restart: connecting ends what a killed daemon has left open, before the positions are read.

Connecting fences whoever was there, so a daemon that has been away must not do it blindly, or it would take
back what another has taken over meanwhile. It first compares the positions with those it knows: if somebody
else has moved one, it is the one that ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import structlog
from kafka import ConsumerGroupMetadata, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors

from daemon.errors import FencedProducer, SourceUnavailable
from daemon.settings import KafkaSource
from daemon.sources.base import Message, Place
from daemon.sources.kafka.producer import (
    MARGIN_SECONDS,
    REFUSALS,
    check_messages,
    deliver,
    producer_options,
    refused,
)
from daemon.sources.kafka.reader import group_positions
from daemon.sources.kafka.security import describe_failure
from daemon.sources.transactions import Position

log = structlog.get_logger(__name__)

TransactionOutcome = Literal["committed", "aborted", "fenced"]

# The broker of the coordinator says the first, the one of a partition the second.
FENCED = (kafka_errors.ProducerFencedError, kafka_errors.InvalidProducerEpochError)


class TransactionalProducer(KafkaProducer):  # type: ignore[misc]
    """kafka-python's producer, whose transactions take at most `max_block_ms`."""

    _deadline = 0.0

    @property
    def fenced(self) -> bool:
        """Whether a broker has said that another producer has taken over."""
        return isinstance(self._transaction_manager.last_error, FENCED)

    def begin_transaction(self) -> None:
        """Begin, and let the time run."""
        self._deadline = time.monotonic() + self.config["max_block_ms"] / 1000
        super().begin_transaction()

    def send_offsets_to_transaction(
        self, offsets: dict[TopicPartition, OffsetAndMetadata], group_metadata: ConsumerGroupMetadata
    ) -> None:
        """Make offsets of a group part of the transaction."""
        self._settle(self._transaction_manager.send_offsets_to_transaction(offsets, group_metadata))

    def commit_transaction(self) -> None:
        """Make everything visible; after `KafkaTimeoutError` it may have happened or not."""
        self._settle(self._transaction_manager.begin_commit())

    def abort_transaction(self) -> None:
        """Take everything back, in the little time that a failure may still take."""
        self._deadline = 0.0
        self._settle(self._transaction_manager.begin_abort())

    def _settle(self, result: Any) -> None:
        self._sender.wakeup()
        # A process that was stopped in between still hears the answer if there is one: that it is fenced.
        remaining = max(MARGIN_SECONDS, self._deadline - time.monotonic())
        if not result.wait(timeout_ms=remaining * 1000):
            raise kafka_errors.KafkaTimeoutError(
                f"transaction {self.config['transactional_id']}: no answer in time"
            )


class KafkaTransactions:
    """`Transactions` of one name; connects at the first call and again after a failure.

    Args:
        settings: the cluster; the topic it names is not used.
        name: of the transactions, and of the group that holds their positions.
        count: told what became of each transaction.
        new_producer: makes the producer from its options.
    """

    def __init__(
        self,
        settings: KafkaSource,
        name: str,
        *,
        count: Callable[[TransactionOutcome], None],
        new_producer: Callable[..., TransactionalProducer] = TransactionalProducer,
    ) -> None:
        self._settings = settings
        self._name = name
        self._count = count
        self._new_producer = new_producer
        self._producer: TransactionalProducer | None = None
        self._positions: dict[Place, Position | None] = {}
        self._doubtful: dict[Place, Position] = {}

    def position(self, place: Place) -> Position | None:
        """Return the position behind the last messages that became visible, None before the first.

        Raises:
            SourceUnavailable: no broker answers, or access is refused.
            FencedProducer: another daemon has taken over.
        """
        self._connect()
        if place not in self._positions:
            self._positions |= self._committed([place], "read_committed")
        return self._positions[place]

    def send(self, topic: str, messages: Sequence[Message], place: Place, position: Position) -> None:
        """Append messages and move a position, in one transaction.

        Raises:
            SourceUnavailable: not all was confirmed within `delivery_timeout_seconds`; nothing was done, or
                all, which `position` tells.
            MessageRefused: the cluster will never take one of the messages; nothing was done.
            FencedProducer: another daemon has taken over; nothing was done.
            ValueError: a message has neither value nor key.
        """
        check_messages(topic, messages)
        # What it was before is what tells, if nobody confirms the commit.
        self.position(place)
        producer = self._connect()
        offsets = {TopicPartition(*place): OffsetAndMetadata(position.offset, position.note, -1)}
        patience = self._settings.delivery_timeout_seconds + MARGIN_SECONDS
        asked_to_commit = False
        try:
            producer.begin_transaction()
            deliver(producer, topic, messages, patience)
            producer.send_offsets_to_transaction(offsets, ConsumerGroupMetadata(self._name))
            asked_to_commit = True
            producer.commit_transaction()
        except (kafka_errors.KafkaError, OSError) as error:
            if producer.fenced or isinstance(error, FENCED):
                self._count("fenced")
                self._discard()
                raise self._fenced() from error
            if asked_to_commit:
                self._doubtful = {place: position}
            else:
                self._abort(producer)
            self._discard()
            if isinstance(error, REFUSALS):
                raise refused(topic, error) from error
            said = describe_failure(self._settings, error)
            raise SourceUnavailable(
                f"{len(messages)} messages to {topic} not confirmed in a transaction: {said}"
            ) from error
        self._positions[place] = position
        self._count("committed")

    @property
    def _longest_seconds(self) -> float:
        """After this the broker ends a transaction, so that none is in the way of readers for ever.

        We take at most the delivery with its margin, and a margin each for offsets and commit; the rest is
        for a slow machine.
        """
        return 2 * (self._settings.delivery_timeout_seconds + 3 * MARGIN_SECONDS)

    def close(self) -> None:
        """Release the connections; idempotent."""
        self._discard()

    def _connect(self) -> TransactionalProducer:
        if self._producer is None:
            self._compare("read_uncommitted")
            producer = self._open()
            try:
                # Now nobody else can move one any more.
                self._compare("read_committed")
            except BaseException:
                _close(producer)
                raise
            self._producer = producer
        return self._producer

    def _compare(self, isolation: Literal["read_committed", "read_uncommitted"]) -> None:
        """Compare the positions with those known; final ones also settle a doubtful commit."""
        found = self._committed(self._positions, isolation)
        doubtful = self._doubtful
        for place, known in self._positions.items():
            # Kafka forgets the offsets of a group that has been idle for a week; nobody else has moved those.
            if found[place] not in (None, known, doubtful.get(place)):
                self._doubtful = {}
                if doubtful:
                    self._count("fenced")
                raise self._fenced()
        if isolation == "read_committed" and doubtful:
            self._doubtful = {}
            done = all(found[place] == position for place, position in doubtful.items())
            if done:
                self._positions |= doubtful
            self._count("committed" if done else "aborted")

    def _committed(
        self, places: Collection[Place], isolation: Literal["read_committed", "read_uncommitted"]
    ) -> dict[Place, Position | None]:
        if not places:
            return {}
        settings = self._settings.model_copy(update={"isolation_level": isolation})
        found = group_positions(settings, self._name, places)
        return {place: found.get(place) for place in places}

    def _open(self) -> TransactionalProducer:
        """Return a new producer, which ends what its predecessor has left open."""
        options = producer_options(self._settings) | {
            "transactional_id": self._name,
            "transaction_timeout_ms": round(self._longest_seconds * 1000),
        }
        producer = None
        try:
            producer = self._new_producer(**options)
            producer.init_transactions()
        except (kafka_errors.KafkaError, OSError) as error:
            _close(producer)
            if isinstance(error, FENCED):
                raise self._fenced() from error
            said = describe_failure(self._settings, error)
            raise SourceUnavailable(f"transactions {self._name} not ready: {said}") from error
        log.info("kafka.transactions_ready", name=self._name)
        return producer

    def _abort(self, producer: TransactionalProducer) -> None:
        self._count("aborted")
        try:
            producer.abort_transaction()
        except kafka_errors.KafkaError as error:
            # The next producer of this name takes it back, at the latest the broker once its time is up.
            log.warning("kafka.abort_failed", name=self._name, error=str(error))

    def _discard(self) -> None:
        producer, self._producer = self._producer, None
        _close(producer)

    def _fenced(self) -> FencedProducer:
        return FencedProducer(
            f"transactions {self._name}: another daemon has taken over, or this one stood still for more "
            f"than {self._longest_seconds:g} s inside a transaction; nothing of that was written. Stop one "
            "of the two, or give it a group_id (or group_instance_id) of its own"
        )


def _close(producer: TransactionalProducer | None) -> None:
    if producer is None:
        return
    try:
        producer.close(timeout=MARGIN_SECONDS)
    except kafka_errors.KafkaError as error:
        log.warning("kafka.producer_close_failed", error=str(error))
