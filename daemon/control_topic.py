"""Commands from a stream's control topic: one thread per stream that takes each at most once.

The offset moves, and the command's id is noted, in one transaction *before* the command is carried out.
Killed between the two, the daemon never carries it out. The other order would carry it out twice, and
that is worse: a rollback "to the one before" done twice goes back two generations and nobody sees why,
while a command without effect is seen by whoever sent it (its decision is missing) and sent again under
another id. For the same reason a command whose id was taken before is left out, whoever repeats it.

A state that sees the topic for the first time begins at its end: the commands there were meant for
another state. A topic that did not exist then is read from its beginning.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping

import structlog

from daemon.backoff import Backoff
from daemon.clock import Clock
from daemon.errors import DeadLetter, ServingError, StreamError, SwapError
from daemon.messages.control import Command, Flush, Pause, Promote, Resume, Rollback, parse_command
from daemon.messages.dead_letter import dead_letter_message
from daemon.messages.parse import Rejected
from daemon.metrics import Metrics
from daemon.serving.control import Control
from daemon.sources.base import Extent, Place, Reader, Record, Sink
from daemon.state.base import DeadSample, Decision, State

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
COMMANDS_AT_ONCE = 50
KIND = "control"


class ControlTopic:
    """Owns the thread that carries out the commands of one stream's control topic.

    Attributes:
        failed: what ended the thread although nobody asked it to, None while all is well.

    Args:
        stream: the stream's name.
        topic: where its commands come from.
        letters: where bad ones go.
        secret: of their signatures; None takes unsigned commands.
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
        reader: Reader,
        control: Control,
        sink: Sink,
        state: State,
        metrics: Metrics,
        clock: Clock,
        random_source: random.Random | None = None,
    ) -> None:
        self._stream, self._topic, self._letters, self._secret = stream, topic, letters, secret
        self._reader, self._control, self._sink = reader, control, sink
        self._state, self._metrics, self._clock = state, metrics, clock
        self._backoff = Backoff(random_source or random.Random())
        self._trouble = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"control-{stream}", daemon=True)
        self.failed: BaseException | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end after the command it carries out."""
        self._stop.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread to end, at most that long (s); return whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def turn(self) -> float:
        """Carry out what is there, and return how long to wait before the next turn, in seconds."""
        try:
            extents = self._reader.extents(self._topic)
            for place, offset in self._positions(extents).items():
                if offset < extents[place.partition].end:
                    self._take_all(place, offset)
        except StreamError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.warning("control.unavailable", stream=self._stream, topic=self._topic, error=str(error))
            return self._backoff.delay()
        self._backoff.reset()
        self._trouble = ""
        return POLL_SECONDS

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._clock.wait(self._stop, self.turn())
        except Exception as error:
            self.failed = error
            log.exception("control.failed", stream=self._stream)
        finally:
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

    def _take_all(self, place: Place, offset: int) -> None:
        while not self._stop.is_set():
            records = self._reader.read(self._topic, place.partition, offset, COMMANDS_AT_ONCE)
            if not records:
                return
            for record in records:
                if self._stop.is_set():
                    return
                self._take(record)
            offset = records[-1].offset + 1

    def _take(self, record: Record) -> None:
        try:
            command = parse_command(record, self._stream, self._secret)
        except DeadLetter as error:
            self._refuse(record, error)
            return
        if not self._state.take_command(self._stream, record.place, record.offset + 1, command.id):
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
        self._state.record_decision(self._stream, decision)
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
