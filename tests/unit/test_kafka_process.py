"""A Kafka source whose consumer is another process, with one that follows a script."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from daemon.errors import OffsetGap, SourceUnavailable
from daemon.settings import KafkaSource as KafkaSettings
from daemon.settings import LogSettings
from daemon.sources.kafka import process
from daemon.sources.kafka.child_process import ALLOCATOR
from daemon.sources.kafka.facts import KafkaFacts
from daemon.sources.kafka.process import ProcessKafkaSource
from tests.support.manual_clock import ManualClock
from tests.support.scripted_source import AWAY, DIES_AT, EXIT_STATUS, FACTS, GAP, LAG, PER_POLL, PLACE
from tests.support.stopped import stop_child

PATIENCE = 60.0
PASSWORD = "hunter2"
SECURITY = {"protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN", "username": "me", "password": PASSWORD}


class Rig:
    """A source on a clock that stands still."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.seen: list[KafkaFacts] = []
        settings = KafkaSettings.model_validate(
            {"bootstrap_servers": ["kafka:9092"], "topic": PLACE.topic, "security": SECURITY}
        )
        self.source = ProcessKafkaSource(settings, LogSettings(), self.clock, self.seen.append)
        self.source.command = (sys.executable, "-m", "tests.support.scripted_source")

    def offsets(self) -> list[int]:
        """Poll once; return the offsets."""
        return [record.offset for record in self.source.poll(PATIENCE, 100)]

    def until_it_dies(self) -> None:
        """Take what comes before the process's death, and meet it."""
        self.source.start({})
        for first in range(0, DIES_AT, PER_POLL):
            assert self.offsets() == list(range(first, first + PER_POLL))
        with pytest.raises(SourceUnavailable, match=f"exit status {EXIT_STATUS}"):
            self.offsets()


@pytest.fixture
def rig() -> Iterator[Rig]:
    """Make a source that is closed whatever happens."""
    made = Rig()
    yield made
    made.source.close()
    assert made.source.pid is None


def test_a_dead_process_is_started_again_from_the_store(rig: Rig) -> None:
    """What was handed over is stored first, and then nothing comes twice and nothing is missing."""
    rig.until_it_dies()
    rig.clock.advance(60.0)
    with pytest.raises(SourceUnavailable, match="once what it gave is stored"):
        rig.offsets()
    rig.source.commit({PLACE: DIES_AT})
    assert rig.offsets() == [6, 7, 8]


def test_a_dead_process_is_not_started_again_at_once(rig: Rig) -> None:
    """One that always dies must not take the machine's time."""
    rig.until_it_dies()
    rig.source.commit({PLACE: DIES_AT})
    with pytest.raises(SourceUnavailable, match="started again"):
        rig.offsets()
    assert rig.source.pid is None
    assert rig.source.stalled() == ()
    assert rig.source.lag() == {}
    assert not rig.source.facts().up


def test_a_pause_outlives_the_process(rig: Rig) -> None:
    """Intake asked for no records, whoever would give them."""
    rig.until_it_dies()
    rig.source.commit({PLACE: DIES_AT})
    rig.source.pause()
    rig.clock.advance(60.0)
    assert rig.offsets() == []
    rig.source.resume()
    assert rig.offsets() == [6, 7, 8]


def test_a_process_that_hangs_is_ended(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Intake must not hang with it."""
    rig.source.start({})
    assert rig.source.pid is not None
    stop_child(rig.source.pid)
    monkeypatch.setattr(process, "ANSWER_SECONDS", 0.1)
    with pytest.raises(SourceUnavailable, match=r"did not answer \(signal 9"):
        rig.source.poll(0.0, 10)


def test_a_failed_start_says_why_and_may_be_tried_again(rig: Rig) -> None:
    """The process's own words and kinds of error arrive; it is kept for the next try."""
    with pytest.raises(SourceUnavailable, match="no broker answers"):
        rig.source.start({PLACE: AWAY})
    kept = rig.source.pid
    with pytest.raises(OffsetGap, match="begins at 1001"):
        rig.source.start({PLACE: GAP})
    rig.source.start({PLACE: 30})
    assert rig.source.pid == kept
    assert rig.offsets() == [30, 31, 32]


def test_what_the_consumer_knows_is_told_and_may_be_asked_for(rig: Rig) -> None:
    """Metrics and liveness look at the notices, the owner may ask."""
    rig.source.start({})
    assert rig.source.facts() == FACTS
    assert rig.source.lag() == LAG
    assert list(rig.source.stalled()) == [PLACE]
    rig.source.close()
    assert rig.seen == [FACTS]


def test_secrets_are_neither_in_the_arguments_nor_in_the_environment(rig: Rig) -> None:
    """Other processes may read both; what goes through the socket is the secret itself."""
    rig.source.start({})
    child = psutil.Process(rig.source.pid)
    assert PASSWORD not in " ".join(child.cmdline())
    assert PASSWORD not in " ".join(child.environ().values())
    assert process.plain(SecretStr(PASSWORD)) == PASSWORD
    assert process.plain(Path("ca.pem")) == "ca.pem"


def test_the_process_keeps_its_memory_unless_the_operator_says_otherwise(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator's settings reach the process; one that is set already stays."""
    kept, own = ALLOCATOR
    monkeypatch.setenv(own, "4096")
    rig.source.start({})
    environ = psutil.Process(rig.source.pid).environ()
    assert environ[kept] == ALLOCATOR[kept]
    assert environ[own] == "4096"


def test_the_process_ends_when_the_daemon_does(rig: Rig) -> None:
    """A daemon killed with -9 closes the connection and says nothing more."""
    rig.source.start({})
    child = psutil.Process(rig.source.pid)
    assert rig.source._child is not None
    rig.source._child.hang_up()
    assert child.wait(PATIENCE) is not None
