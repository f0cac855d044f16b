"""Commands from a stream's control topic: one thread per stream that takes each at most once.

The offset moves, and the command's id is noted, in one transaction *before* the command is carried out.
Killed between the two, the daemon never carries it out. The other order would carry it out twice, and
that is worse: a rollback "to the one before" done twice goes back two generations and nobody sees why,
while a command without effect is seen by whoever sent it (its decision is missing) and sent again under
another id. For the same reason a command whose id was taken before is left out, whoever repeats it, and
one that is older than ids are remembered is refused (`daemon.messages.command_age`).

A state that sees the topic for the first time begins at its end: the commands there were meant for
another state. A topic that did not exist then is read from its beginning.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import structlog

from daemon.clock import Clock
from daemon.errors import DeadLetter, ServingError, SwapError
from daemon.events.base import Events
from daemon.messages.command_age import check_age, command_date
from daemon.messages.control import (
    Command,
    Flush,
    Forget,
    Pause,
    Promote,
    Remember,
    Resume,
    Rollback,
    parse_command,
)
from daemon.messages.dead_letter import dead_letter_message
from daemon.messages.events import CommandEnded
from daemon.messages.parse import Rejected
from daemon.metrics import Metrics
from daemon.owner_thread import OwnerThread
from daemon.serving.control import Control
from daemon.sources.base import Extent, Place, Reader, Record, Sink
from daemon.state.base import DeadSample, Decision, State
from daemon.topic_lag import show_lag

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
COMMANDS_AT_ONCE = 50
KIND = "control"


class ControlTopic(OwnerThread):
    """Carries out the commands of one stream's control topic.

    Args:
        stream: the stream's name.
        topic: where its commands come from.
        letters: where bad ones go.
        secret: of their signatures; None takes unsigned commands.
        remembered_seconds: how long their ids are remembered; an older command is refused.
        events: tell what came of each.
        reader: of the log; owned by the thread from its start.
        control: carries commands out.
        sink, state, metrics, clock: the parts it works with.
        random_source: jitter of the waits after a failure.
    """

    def __init__(
        self,
        stream: str,
        topic: str,
        *,
        letters: str,
        secret: str | None,
        remembered_seconds: float,
        events: Events,
        reader: Reader,
        control: Control,
        sink: Sink,
        state: State,
        metrics: Metrics,
        clock: Clock,
        random_source: random.Random | None = None,
    ) -> None:
        super().__init__(f"control-{stream}", clock, random_source)
        self._stream, self._topic, self._letters, self._secret = stream, topic, letters, secret
        self._remembered_seconds, self._events = remembered_seconds, events
        self._reader, self._control, self._sink = reader, control, sink
        self._state, self._metrics = state, metrics

    def work(self) -> float:
        """Carry out what is there."""
        extents = self._reader.extents(self._topic)
        for place, offset in self._positions(extents).items():
            self._take_all(place, offset, extents[place.partition].end)
        return POLL_SECONDS

    def release(self) -> None:
        """Close the reader."""
        self._reader.close()

    def _positions(self, extents: Mapping[int, Extent]) -> dict[Place, int]:
        """Return the next offset of each partition, and remember where new ones begin."""
        known = {
            place: offset
            for place, offset in self._state.next_offsets(self._stream).items()
            if place.topic == self._topic
        }
        if not extents and not known:
            self._state.move_offset(self._stream, Place(self._topic, 0), 0)
        positions = {}
        for partition, extent in sorted(extents.items()):
            place = Place(self._topic, partition)
            offset = known.get(place)
            if offset is None:
                # A partition that was added later holds nothing from before.
                offset = extent.start if known else extent.end
                self._state.move_offset(self._stream, place, offset)
            elif not extent.start <= offset <= extent.end:
                log.warning(
                    "control.gap",
                    stream=self._stream,
                    partition=partition,
                    wanted=offset,
                    resumed_at=extent.start,
                )
                offset = extent.start
            positions[place] = offset
        return positions

    def _take_all(self, place: Place, offset: int, end: int) -> None:
        while not self._stop.is_set():
            records = self._read(place, offset) if offset < end else ()
            show_lag(self._metrics, self._stream, KIND, place, end - offset, records, self._clock)
            if not records:
                return
            for record in records:
                if self._stop.is_set():
                    return
                self._take(record)
            offset = records[-1].offset + 1

    def _read(self, place: Place, offset: int) -> Sequence[Record]:
        return self._reader.read(place.topic, place.partition, offset, COMMANDS_AT_ONCE)

    def _take(self, record: Record) -> None:
        try:
            command = parse_command(record, self._stream, self._secret)
            date = command_date(command, record, signed=self._secret is not None)
            check_age(date, self._clock.now(), self._remembered_seconds)
        except DeadLetter as error:
            self._refuse(record, error)
            return
        if not self._state.take_command(self._stream, record.place, record.offset + 1, command.id, date):
            log.warning("control.duplicate", stream=self._stream, command=command.command, id=command.id)
            self._count("duplicate")
            return
        try:
            reason, done = self._execute(command), True
        except (ServingError, SwapError) as error:
            reason, done = str(error), False
        decision = Decision(
            self._clock.now(),
            KIND,
            command.command,
            done,
            reason,
            {"id": command.id, "offset": record.offset},
        )
        ended = CommandEnded(
            stream=self._stream, command=command.command, command_id=command.id, done=done, reason=reason
        )
        self._state.record_decision(self._stream, decision, self._events.of(decision.at, ended))
        self._count("done" if done else "failed")
        log.info(
            "control.executed" if done else "control.refused",
            stream=self._stream,
            command=command.command,
            id=command.id,
            reason=reason,
        )

    def _execute(self, command: Command) -> str:
        """Carry a command out and say what came of it."""
        control, stream = self._control, self._stream
        match command:
            case Flush():
                return str(control.flush(stream)["reason"])
            case Pause():
                control.pause(stream)
                return "intake is paused"
            case Resume():
                control.resume(stream)
                return "intake is resumed"
            case Promote() | Rollback():
                answer = control.rollback(stream, command.generation)
                return f"generation {answer['generation_number']} is live"
            case Forget():
                return str(control.forget(stream, command.label)["reason"])
            case Remember():
                return str(control.remember(stream, command.label)["reason"])

    def _refuse(self, record: Record, error: DeadLetter) -> None:
        """Make the dead letter durable, then go past the message."""
        dead = DeadSample(record.place, record.offset, 0, error.reason, str(error))
        letter = dead_letter_message(record, Rejected(dead, record.value or b"", record.headers))
        self._sink.send(self._letters, [letter])
        self._state.move_offset(self._stream, record.place, record.offset + 1)
        self._metrics.dead_letters.labels(self._stream, error.reason.value).inc()
        self._count("dead_lettered")
        log.warning(
            "control.dead_letter",
            stream=self._stream,
            offset=record.offset,
            reason=error.reason.value,
            message=str(error),
        )

    def _count(self, outcome: str) -> None:
        self._metrics.control_commands.labels(self._stream, outcome).inc()
