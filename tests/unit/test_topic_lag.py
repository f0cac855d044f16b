"""How far the control and requests topics are behind, as an operator sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.metrics import Metrics
from daemon.serving.request_topic import RequestTopic
from daemon.settings import RequestTopicSettings
from daemon.sources.base import Message, Place, Record
from daemon.sources.embedded import EmbeddedReader, EmbeddedSink
from daemon.sources.log import EmbeddedLog
from daemon.topic_lag import show_lag
from tests.support.http_service import encoded_image, http_service
from tests.support.ingest import FlakySink
from tests.support.manual_clock import ManualClock
from tests.support.servables import LinearServable
from tests.support.session_rig import STREAM, SessionRig
from tests.unit.test_control_topic import TOPIC, Rig

PLACE = Place("s.requests", 2)


@pytest.mark.parametrize(
    ("behind", "waiting", "expected"),
    [
        (0, [], (0, 0)),
        (7, [Record("s.requests", 2, 5, None, b"", timestamp=90.0)], (7, 10)),
        # A producer's clock may be ahead of ours.
        (1, [Record("s.requests", 2, 5, None, b"", timestamp=130.0)], (1, 0)),
        # The marker of a transaction has an offset and is no record.
        (1, [], (0, 0)),
    ],
)
def test_lag_is_in_records_and_in_seconds(
    behind: int, waiting: list[Record], expected: tuple[int, int]
) -> None:
    """Of the oldest record that waits."""
    metrics = Metrics()
    show_lag(metrics, "s", "requests", PLACE, behind, waiting, ManualClock(100.0))
    labels = {"stream": "s", "kind": "requests", "partition": "2"}
    value = metrics.registry.get_sample_value
    shown = [value(f"accrete_topic_lag_{unit}", labels) for unit in ("records", "seconds")]
    assert tuple(shown) == expected


def lag(metrics: Metrics, kind: str) -> tuple[float | None, float | None]:
    """Return what is shown of the only partition."""
    labels = {"stream": STREAM, "kind": kind, "partition": "0"}
    value = metrics.registry.get_sample_value
    return value("accrete_topic_lag_records", labels), value("accrete_topic_lag_seconds", labels)


def test_requests_that_wait_are_seen(tmp_path: Path) -> None:
    """Nothing can answer yet: the lag grows older; once answered it is gone."""
    rig = SessionRig(tmp_path / "state")
    log = EmbeddedLog(tmp_path / "topics.db", rig.clock)
    log.append("asked", [Message(encoded_image(n)) for n in range(3)])
    with http_service() as service:
        topic = RequestTopic(
            STREAM,
            "asked",
            "answered",
            settings=RequestTopicSettings(at_once=2),
            reader=EmbeddedReader(log),
            service=service.service,
            sink=EmbeddedSink(log),
            state=rig.state,
            metrics=rig.metrics,
            clock=rig.clock,
        )
        rig.clock.advance(40.0)
        topic.turn()
        assert lag(rig.metrics, "requests") == (3, 40)
        service.slot.publish(LinearServable(1), 1)
        for _ in range(3):
            topic.turn()
        assert lag(rig.metrics, "requests") == (0, 0)
    rig.close()
    log.close()


def test_commands_that_wait_are_seen(tmp_path: Path) -> None:
    """The dead-letter topic is away, so a bad command holds up those behind it."""
    control = Rig(tmp_path)
    sink = FlakySink(1)
    topic = control.topic(sink=sink)
    topic.turn()
    control.log.append(TOPIC, [Message(b"not a command"), Message(b"nor this")])
    control.rig.clock.advance(5.0)
    topic.turn()
    assert lag(control.rig.metrics, "control") == (2, 5)
    topic.turn()
    assert len(sink.sent) == 2
    topic.turn()
    assert lag(control.rig.metrics, "control") == (0, 0)
    control.close()
