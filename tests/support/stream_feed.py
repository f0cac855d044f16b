"""The producer of a made-up stream, and what a daemon's state shows of it from outside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaProducer
from sqlalchemy.exc import OperationalError

from daemon.clock import SystemClock
from daemon.errors import StateError
from daemon.state import SqlState
from daemon.state.base import SessionOutcome, SessionRecord, StreamCounts
from tests.support.labelled_stream import STREAM, Group, Planned

# A broker that is away for a minute must not cost the producer a record.
DELIVERY_SECONDS = 300.0
# A wait that takes longer will never end.
PATIENCE_SECONDS = 300.0
LOOK_SECONDS = 0.05


class Stuck(Exception):
    """What was waited for did not come."""


class StateWatch:
    """Looks into a state directory, whether its daemon lives or not."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._state: SqlState | None = None

    def open(self) -> SqlState | None:
        """Return the state, None before a daemon has made it."""
        if self._state is None:
            try:
                self._state = SqlState.open(
                    self._directory, holdout_fraction={}, clock=SystemClock(), read_only=True
                )
            except (StateError, OperationalError):
                return None
        return self._state

    def counts(self) -> StreamCounts:
        """Return the stream's durable totals."""
        state = self.open()
        return StreamCounts(0, 0, 0) if state is None else state.counts(STREAM)

    def sessions(self) -> Sequence[SessionRecord]:
        """Return the sessions so far."""
        state = self.open()
        return () if state is None else state.sessions(STREAM)

    def close(self) -> None:
        """Release the database."""
        if self._state is not None:
            self._state.close()
            self._state = None


@dataclass
class Produced:
    """What has been sent and confirmed, in samples; `groups` are those sent completely."""

    ids: set[str]
    duplicates: int = 0
    dead: int = 0
    groups: int = 0

    @property
    def total(self) -> int:
        """All samples."""
        return len(self.ids) + self.duplicates + self.dead


class Feeder(threading.Thread):
    """Produces group after group, each as far as the state allows; see `labelled_stream`.

    Attributes:
        go_on: lets it go on after a group of which no session comes.
        produced: what has been sent and confirmed.
        failure: what ended it too early.

    Args:
        address: of the broker.
        topic: the labelled topic.
        groups: the stream.
        watches: states that share the stream.
        pulse_seconds: from one pulse to the next at least, once the first group is complete.
    """

    def __init__(
        self,
        address: str,
        topic: str,
        groups: Sequence[Group],
        watches: Sequence[StateWatch],
        pulse_seconds: float = 0.0,
    ) -> None:
        super().__init__(name="feeder", daemon=True)
        self._topic, self._groups, self._watches, self._pulse_seconds = topic, groups, watches, pulse_seconds
        self._producer = KafkaProducer(
            bootstrap_servers=address,
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=5000,
            delivery_timeout_ms=round(DELIVERY_SECONDS * 1000),
            max_block_ms=round(DELIVERY_SECONDS * 1000),
        )
        self._finish = threading.Event()
        self.go_on = threading.Event()
        self._pause = threading.Event()
        self.produced = Produced(set())
        self.failure: Exception | None = None

    def run(self) -> None:
        """Produce until everything is promoted, or the group is that was under way at `finish`."""
        try:
            for group in self._groups:
                self._produce(group)
                if self._finish.is_set():
                    break
            self.wait(lambda: self.promoted() >= self.produced.groups, "the last session has ended")
            self.wait(self.all_stored, "everything produced is stored")
        except Exception as error:  # noqa: BLE001 - whoever joins the thread raises it
            self.failure = error
        finally:
            self._producer.close(10)

    def _produce(self, group: Group) -> None:
        number = self.produced.groups
        for pulse in group.pulses:
            self.send(pulse)
            self._pause.wait(self._pulse_seconds if number else 0.0)
            self.wait(self.all_stored, "everything produced is stored")
        if group.last is None:
            self.wait(self.go_on.is_set, "the word to go on")
            return
        self.wait(lambda: self.promoted() >= number, f"session {number - 1} has ended")
        self.send([group.last])
        self.produced.groups += 1
        self.wait(lambda: self.begun() > number, f"session {number} begins")

    def finish(self) -> None:
        """End with the group that is under way."""
        self._finish.set()

    def done(self) -> bool:
        """Tell whether it has ended; raise what made it fail."""
        if self.failure is not None:
            raise self.failure
        return not self.is_alive()

    def send(self, records: Sequence[Planned]) -> None:
        """Produce some records and wait until they are confirmed."""
        futures = [
            self._producer.send(
                self._topic,
                value=planned.message.value,
                key=planned.message.key,
                headers=list(planned.message.headers.items()),
                partition=planned.partition,
            )
            for planned in records
        ]
        for planned, future in zip(records, futures, strict=True):
            future.get(DELIVERY_SECONDS)
            self.produced.ids.update(planned.ids)
            self.produced.duplicates += planned.duplicates
            self.produced.dead += planned.dead

    def all_stored(self) -> bool:
        """Tell whether the states have counted as many samples as were produced."""
        counts = [watch.counts() for watch in self._watches]
        return sum(c.stored + c.duplicate + c.dead_lettered for c in counts) >= self.produced.total

    def promoted(self) -> int:
        """Count the sessions that were promoted."""
        return len(self.ended())

    def ended(self) -> list[SessionRecord]:
        """Return the sessions that were promoted.

        Raises:
            Stuck: one ended otherwise.
        """
        records = [s for watch in self._watches for s in watch.sessions()]
        bad = [s for s in records if s.outcome in (SessionOutcome.FAILED, SessionOutcome.REJECTED)]
        if bad:
            raise Stuck(f"session {bad[0].id} ended as {bad[0].outcome}: {dict(bad[0].detail)}")
        return [s for s in records if s.outcome is SessionOutcome.PROMOTED]

    def begun(self) -> int:
        """Count the sessions that were begun."""
        return sum(len(watch.sessions()) for watch in self._watches)

    def wait(self, reached: Callable[[], bool], what: str) -> None:
        """Wait until something holds.

        Raises:
            Stuck: it does not within `PATIENCE_SECONDS`.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not reached():
            if time.monotonic() > deadline:
                raise Stuck(
                    f"not within {PATIENCE_SECONDS:g} s: {what}; {self.produced.total} samples produced"
                )
            self._pause.wait(LOOK_SECONDS)
