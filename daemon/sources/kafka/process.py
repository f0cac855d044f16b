"""The `kafka` source in a process of its own: fetching takes no turn from parsing, storing and serving.

Python runs one thread of a process at a time. In the daemon's own process each of the client's many short
waits for the network would end with a wait for the interpreter; in another process they cost nothing here,
and records arrive a whole poll at once.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr

from daemon import settings as config
from daemon.backoff import Backoff
from daemon.clock import Clock
from daemon.errors import DaemonError, SourceUnavailable
from daemon.sources.base import Lag, Place, Record
from daemon.sources.kafka.child_process import ChildGone, ChildProcess
from daemon.sources.kafka.facts import REBALANCE_KINDS, KafkaFacts
from daemon.sources.kafka.frames import pack_offsets, unpack_records, unpack_status
from daemon.sources.kafka.pump import CLOSE_SECONDS

log = structlog.get_logger(__name__)

# Beyond its own time-out a call waits only for a turn on a busy machine; a minute of silence is a hang of
# intake, which the process is not to cause.
ANSWER_SECONDS = 15.0
# Python and its modules, read from a cold disk.
LOAD_SECONDS = 20.0

_NOTHING_KNOWN = KafkaFacts(
    up=False,
    pause_reason=None,
    last_poll=0.0,
    positions={},
    stalled=(),
    rebalances=dict.fromkeys(REBALANCE_KINDS, 0),
    queued_records=0,
    queued_bytes=0,
    stale_records=0,
    commit_failures=0,
    gap_records=0,
)


class ProcessKafkaSource:
    """A `KafkaSource` in a child process, which is started again when it dies.

    Delivery is that of `KafkaSource`: what `poll` returned was handed over, everything else still waits in
    the child, so a partition that moves is given up in the same order. After the child's death the store's
    offsets decide, as after a restart of the daemon, once all that was handed over is stored.

    Args:
        settings: the topic and its cluster.
        log_settings: how the child logs, to the same standard error.
        clock: time.
        on_facts: told about every second, from a thread of its own.
    """

    # What to start; tests give another.
    command: Sequence[str] = (sys.executable, "-m", "daemon.sources.kafka.child")

    def __init__(
        self,
        settings: config.KafkaSource,
        log_settings: config.LogSettings,
        clock: Clock,
        on_facts: Callable[[KafkaFacts], None] | None = None,
    ) -> None:
        given = {"log": log_settings.model_dump(), "source": settings.model_dump()}
        self._given = json.dumps(given, default=plain)
        self._log = log.bind(topic=settings.topic)
        self._clock = clock
        self._on_facts = on_facts
        # Connecting and the looks at the log have four times this long, as in `KafkaSource`.
        self._patience = LOAD_SECONDS + 4 * settings.connect_timeout_seconds + ANSWER_SECONDS
        self._backoff = Backoff(random.Random())
        self._child: ChildProcess | None = None
        self._running = False
        # When a `start` that is under way must have been answered.
        self._started_by: float | None = None
        self._start_again_at = 0.0
        self._why_down = ""
        self._paused = False
        self._stored: dict[Place, int] = {}
        self._taken: dict[Place, int] = {}
        self._facts = _NOTHING_KNOWN
        self._lag: Mapping[Place, Lag] = {}

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return None if self._child is None else self._child.pid

    def start(self, stored: Mapping[Place, int]) -> None:
        """Start the process, connect, check the stored offsets and join the group; may be tried again.

        Args:
            stored: next offset wanted per partition; other topics' are ignored.

        Raises:
            OffsetGap: a stored offset is no longer in the log, and `on_gap` is `refuse`.
            SourceUnavailable: no broker answers, access is refused, the topic does not exist, or the process
                has died.
            ConfigError: a certificate or secret file cannot be used.
        """
        assert not self._running, "a source that has started is not started again"
        self._stored, self._taken = dict(stored), {}
        self._ask_start()
        self._hear_start(self._patience)

    def poll(self, timeout: float, max_records: int) -> Sequence[Record]:
        """Return the next records; empty after the timeout (s).

        Raises:
            OffsetGap: retention has overtaken the stream, and `on_gap` is `refuse`; again at each call.
            SourceUnavailable: nothing is left to hand over and no broker has answered for
                `unreachable_seconds`, or the process has died; consuming resumes by itself.
            StreamError: another daemon has taken this one's `group_instance_id`; again at each call.
            ConfigError: the process was started again, and a certificate or secret file cannot be used now.
        """
        if not self._running:
            self._go_on(timeout)
        runs, values = self._call("poll", timeout, max_records, patience=timeout)
        for topic, partition, run in runs:
            self._taken[Place(topic, partition)] = run[-1][0] + 1
            self._backoff.reset()
        return unpack_records(runs, values)

    def commit(self, next_offsets: Mapping[Place, int]) -> None:
        """Note what is stored durably; the consumer tells the group, and failing is harmless."""
        self._stored.update(next_offsets)
        self._order("commit", pack_offsets(next_offsets))

    def pause(self) -> None:
        """Stop handing over and fetching; membership is kept."""
        self._paused = True
        self._order("pause")

    def resume(self) -> None:
        """Hand over again."""
        self._paused = False
        self._order("resume")

    def lag(self) -> Mapping[Place, Lag]:
        """Return the lag per assigned partition, as of the last second's look; asks nobody."""
        return self._lag

    def stalled(self) -> Sequence[Place]:
        """List partitions with lag that have given nothing for `stall_seconds`, as of the last look."""
        return self._facts.stalled

    def facts(self) -> KafkaFacts:
        """Return what the daemon exports as the child knows it now, or as last known while it is away.

        Raises:
            SourceUnavailable: the process has just died.
        """
        if self._running:
            status, _ = self._call("status", patience=0.0)
            self._note(status)
        return self._facts

    def close(self) -> None:
        """Commit what is pending, leave the group and end the process; idempotent."""
        child, self._child = self._child, None
        if child is None:
            return
        if self._running:
            with suppress(ChildGone):
                child.ask("close")
        else:
            # It may be waiting for a broker, where it hears nothing but this.
            child.hang_up()
        self._running, self._started_by = False, None
        # As long as its thread may take there, and its own end.
        child.wait(5 * CLOSE_SECONDS)
        child.end()

    # -- the start
    def _go_on(self, timeout: float) -> None:
        """Take the start up again after a death or a failed start.

        Raises:
            SourceUnavailable: it is not running yet.
        """
        if self._started_by is None:
            # What is not stored yet would be read again.
            if any(self._stored.get(place, -1) < offset for place, offset in self._taken.items()):
                raise SourceUnavailable(f"{self._why_down}; it is started once what it gave is stored")
            if self._clock.monotonic() < self._start_again_at:
                raise SourceUnavailable(f"{self._why_down}; it is started again")
            self._taken.clear()
            self._ask_start()
        self._hear_start(timeout)

    def _ask_start(self) -> None:
        try:
            if self._child is None:
                self._child = ChildProcess(self.command, self._on_notice)
                # Not as argument or environment, which other processes may read: there are secrets in it.
                self._child.tell(self._given)
                self._log.info("kafka.process_started", pid=self._child.pid)
            self._child.ask("start", pack_offsets(self._stored))
        except ChildGone as error:
            raise self._dead("ended") from error
        self._started_by = self._clock.monotonic() + self._patience

    def _hear_start(self, timeout: float) -> None:
        assert self._child is not None
        assert self._started_by is not None
        try:
            self._child.answer(timeout)
        except TimeoutError as error:
            if self._clock.monotonic() < self._started_by:
                raise SourceUnavailable(f"{self._why_down}; it is being started") from error
            raise self._dead("did not start in time") from error
        except ChildGone as error:
            raise self._dead("ended") from error
        except DaemonError as error:
            self._started_by = None
            self._why_down = str(error)
            self._start_again_at = self._clock.monotonic() + self._backoff.delay()
            raise
        self._started_by = None
        self._running = True
        if self._paused:
            self._order("pause")

    # -- calls
    def _call(self, name: str, *arguments: object, patience: float) -> tuple[Any, memoryview]:
        assert self._child is not None
        try:
            self._child.ask(name, *arguments)
            return self._child.answer(patience + ANSWER_SECONDS)
        except TimeoutError as error:
            raise self._dead("did not answer") from error
        except ChildGone as error:
            raise self._dead("ended") from error

    def _order(self, name: str, *arguments: object) -> None:
        if self._child is not None and self._running:
            # The next poll finds that it is gone.
            with suppress(ChildGone):
                self._child.ask(name, *arguments)

    def _dead(self, how: str) -> SourceUnavailable:
        """Clear up after the child's death and return what to raise."""
        child, self._child = self._child, None
        self._running, self._started_by = False, None
        status = "no process" if child is None else child.end()
        self._facts, self._lag = replace(self._facts, up=False, stalled=()), {}
        self._why_down = f"the process of the Kafka consumer {how} ({status})"
        self._start_again_at = self._clock.monotonic() + self._backoff.delay()
        self._log.error("kafka.process_ended", how=how, status=status)
        return SourceUnavailable(f"{self._why_down}; it is started again")

    # -- what it knows about itself
    def _on_notice(self, status: Mapping[str, Any]) -> None:
        self._note(status)
        if self._on_facts is not None:
            self._on_facts(self._facts)

    def _note(self, status: Mapping[str, Any]) -> None:
        self._facts, self._lag = unpack_status(status)


def plain(value: object) -> str:
    """Return a setting that JSON does not know as text, a secret in clear."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    assert isinstance(value, Path), f"a setting of {type(value)}"
    return str(value)
