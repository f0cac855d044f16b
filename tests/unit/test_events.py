"""Events: made with the change, kept over restarts and outages, published in order."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import FencedOwner, MessageRefused, UnknownGeneration
from daemon.events.outbox import OutboxEvents
from daemon.events.publisher import EVENTS_AT_ONCE, EventPublisher
from daemon.messages.events import SessionStarted
from daemon.sources.base import Sink, scan
from daemon.sources.embedded import EmbeddedReader, EmbeddedSink
from daemon.sources.log import EmbeddedLog
from daemon.state.base import SessionOutcome
from tests.support.ingest import FlakySink
from tests.support.session_rig import STREAM, SessionRig

TOPIC = "s.events"


def publisher(rig: SessionRig, sink: Sink) -> EventPublisher:
    """Return a publisher that the test turns by hand."""
    return EventPublisher(
        STREAM,
        TOPIC,
        state=rig.state,
        sink=sink,
        metrics=rig.metrics,
        clock=rig.clock,
        random_source=random.Random(1),
    )


def kinds(rig: SessionRig) -> list[str]:
    """Return what waits in the outbox, in order."""
    return [pending.event.kind.value for pending in rig.state.pending_events(STREAM, 100)]


def data(rig: SessionRig, kind: str) -> dict[str, Any]:
    """Return the data of the last event of a kind."""
    found = [p.event.data for p in rig.state.pending_events(STREAM, 100) if p.event.kind == kind]
    return dict(found[-1])


def test_a_promoted_session_tells_its_story_in_order(tmp_path: Path) -> None:
    """Started, judged, promoted, published; each names the session and what it was about."""
    rig = SessionRig(tmp_path, events=True)
    digest = rig.promote(0, "a", "b")
    assert kinds(rig) == ["session.started", "gate.judged", "session.promoted", "generation.published"]
    started = data(rig, "session.started")
    assert started["new_classes"] == [{"id": 0, "label": "a"}, {"id": 1, "label": "b"}]
    assert (started["session"], started["parent"], started["schema_version"]) == (0, None, 1)
    assert data(rig, "gate.judged")["passed"] is True
    assert data(rig, "session.promoted")["generation"] == digest
    assert data(rig, "generation.published") == {
        "schema_version": 1,
        "stream": STREAM,
        "generation": digest,
        "session": 0,
    }


def test_rejected_and_failed_sessions_say_why(tmp_path: Path) -> None:
    """The gate's verdict comes first; a session that failed before the gate has none."""
    rig = SessionRig(tmp_path, events=True, gate={"min_accuracy": 0.9})
    rig.begin("a")
    rig.finish(0, a_t=0.5)
    assert rig.outcomes() == [SessionOutcome.REJECTED]
    assert kinds(rig) == ["session.started", "gate.judged", "session.rejected"]
    assert "min_accuracy" in data(rig, "session.rejected")["reason"]
    rig.fail("LearnerError", "no luck")
    assert kinds(rig)[3:] == ["session.started", "session.failed"]
    assert data(rig, "session.failed")["reason"] == "no luck"


def test_a_rollback_names_both_generations(tmp_path: Path) -> None:
    """One that is refused tells nothing."""
    rig = SessionRig(tmp_path, events=True)
    first, second = rig.promote(0, "a"), rig.promote(1, "b")
    with pytest.raises(UnknownGeneration):
        rig.live.rollback(STREAM, "77")
    rig.live.rollback(STREAM, None)
    assert kinds(rig)[-1] == "generation.rolled_back"
    fact = data(rig, "generation.rolled_back")
    assert (fact["generation"], fact["generation_number"], fact["previous"]) == (first, 1, second)


def test_a_change_that_fails_leaves_no_event(tmp_path: Path) -> None:
    """Event and change are one transaction: a fenced daemon tells nothing."""
    rig = SessionRig(tmp_path, events=True)
    rig.begin("a")
    before = kinds(rig)
    with rig.state._writer.begin() as connection:
        connection.exec_driver_sql("UPDATE owner SET epoch = epoch + 1")
    with pytest.raises(FencedOwner):
        rig.finish(0)
    assert kinds(rig) == before


def test_a_stream_whose_events_are_off_keeps_none(tmp_path: Path) -> None:
    """Nothing is written, not even to the outbox."""
    rig = SessionRig(tmp_path)
    rig.promote(0, "a")
    assert kinds(rig) == []


def test_published_events_are_binary_cloudevents(tmp_path: Path) -> None:
    """Attributes are headers, the value is JSON; the outbox is empty and the metrics say so."""
    rig = SessionRig(tmp_path, events=True)
    rig.begin("a")
    (pending,) = rig.state.pending_events(STREAM, 10)
    sink = FlakySink()
    publisher(rig, sink).turn()
    ((topic, message),) = sink.sent
    assert topic == TOPIC
    headers = {name: text.decode() for name, text in message.headers.items()}
    assert headers == {
        "ce_specversion": "1.0",
        "ce_id": pending.event.id,
        "ce_source": "/accrete/streams/s",
        "ce_type": "accrete.session.started.v1",
        "ce_subject": "sessions/0",
        "ce_time": "1970-01-12T13:46:50.000Z",
        "content-type": "application/json",
    }
    assert message.key == b"s"
    assert SessionStarted.model_validate_json(message.value or b"").session == 0
    assert kinds(rig) == []
    assert rig.sample("accrete_events_published_total", type="session.started") == 1
    assert rig.sample("accrete_events_pending") == 0


@pytest.mark.parametrize("refused", [False, True])
def test_an_outage_keeps_events_and_holds_no_session(tmp_path: Path, refused: bool) -> None:
    """While the log is away or refuses, sessions go on; afterwards everything comes, in order."""
    rig = SessionRig(tmp_path, events=True)
    sink = RefusingSink(2) if refused else FlakySink(2)
    publishing = publisher(rig, sink)
    rig.promote(0, "a")
    first, second = publishing.turn(), publishing.turn()
    assert 0 < first <= 0.5 < second <= 1.0
    assert sink.sent == []
    assert rig.sample("accrete_events_pending") == 4
    rig.promote(1, "b")
    publishing.turn()
    types = [message.headers["ce_type"].decode() for _, message in sink.sent]
    assert [t.split(".")[1] for t in types] == ["session", "gate", "session", "generation"] * 2
    assert rig.sample("accrete_events_pending") == 0


def test_events_survive_a_restart_with_their_ids(tmp_path: Path) -> None:
    """Killed between the log's confirmation and the outbox, the next start repeats ids, not events."""
    rig = SessionRig(tmp_path / "state", events=True)
    rig.begin("a")
    rig.finish(0)
    log = EmbeddedLog(tmp_path / "topics.db", rig.clock)

    class KilledAfterSending(EmbeddedSink):
        def send(self, topic: str, messages: Any) -> None:
            super().send(topic, messages)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publisher(rig, KilledAfterSending(log)).turn()
    rig.close()
    again = SessionRig(tmp_path / "state", rig.clock, events=True)
    assert len(kinds(again)) == 4
    publisher(again, EmbeddedSink(log)).turn()
    assert kinds(again) == []
    ids = [record.headers["ce_id"] for record in scan(EmbeddedReader(log), TOPIC)]
    assert len(ids) == len(set(ids)) == 4
    log.close()


def test_a_long_queue_is_published_without_a_pause(tmp_path: Path) -> None:
    """More than one look's worth is followed by the next look at once, oldest first."""
    rig = SessionRig(tmp_path, events=True)
    rig.promote(0, "a")
    events = OutboxEvents([STREAM])
    fact = SessionStarted(stream=STREAM, session=7, new_classes=[], method="ncm", parent=None, reason="")
    with rig.state._write() as connection:
        from daemon.state.outbox import add_events

        add_events(connection, STREAM, events.of(0.0, *[fact] * EVENTS_AT_ONCE))
    sink = FlakySink()
    publishing = publisher(rig, sink)
    assert publishing.turn() == 0.0
    assert publishing.turn() > 0.0
    assert len(sink.sent) == EVENTS_AT_ONCE + 4
    assert json.loads(sink.sent[-1][1].value or b"")["session"] == 7


def test_the_thread_ends_when_told_and_says_what_ended_it(tmp_path: Path) -> None:
    """A fenced daemon's publisher stops with the reason, and nobody had to ask."""
    rig = SessionRig(tmp_path, events=True)
    rig.promote(0, "a")
    with rig.state._writer.begin() as connection:
        connection.exec_driver_sql("UPDATE owner SET epoch = epoch + 1")
    fenced = publisher(rig, FlakySink())
    fenced.start()
    assert fenced.join(10)
    assert isinstance(fenced.failed, FencedOwner)


class RefusingSink(FlakySink):
    """As a cluster where the topic is missing, until somebody makes it."""

    def send(self, topic: str, messages: Any) -> None:
        """Refuse as often as told, then keep the messages."""
        if self.failures:
            self.failures -= 1
            raise MessageRefused(f"topic {topic}: refused")
        self.sent += [(topic, message) for message in messages]
