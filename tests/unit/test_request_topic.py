"""Requests from a topic: each is answered, in order, and none is lost by an outage or a restart."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.messages.predictions import TopicPrediction
from daemon.serving.request_topic import POLL_SECONDS, RequestTopic
from daemon.settings import LimitSettings, RequestTopicSettings
from daemon.sources.base import Message, Place
from daemon.sources.embedded import EmbeddedReader, EmbeddedSink
from daemon.sources.log import EmbeddedLog
from tests.support.http_service import RunningService, encoded_image, http_service
from tests.support.ingest import FlakySink
from tests.support.servables import FailingServable, LinearServable
from tests.support.session_rig import STREAM, SessionRig

REQUESTS, PREDICTIONS = "s.requests", "s.predictions"


class Rig:
    """A request topic that the test turns by hand, before a real service."""

    def __init__(self, directory: Path, service: RunningService) -> None:
        self.state = SessionRig(directory / "state")
        self.log = EmbeddedLog(directory / "topics.db", self.state.clock)
        self.service = service

    def topic(self, **parts: Any) -> RequestTopic:
        """Make the topic's owner, with some parts replaced."""
        values: dict[str, Any] = {
            "settings": RequestTopicSettings(at_once=4, top=2),
            "reader": EmbeddedReader(self.log),
            "service": self.service.service,
            "sink": EmbeddedSink(self.log),
            "state": self.state.state,
            "metrics": self.service.service.metrics,
            "clock": self.state.clock,
            "random_source": random.Random(1),
        }
        return RequestTopic(STREAM, REQUESTS, PREDICTIONS, **values | parts)

    def ask(self, *values: bytes | None) -> None:
        """Append requests, with their number as key and id."""
        first = self.log.end_offset(REQUESTS)
        self.log.append(
            REQUESTS,
            [
                Message(value, key=b"%d" % n, headers={"id": b"%d" % n})
                for n, value in enumerate(values, first)
            ],
        )

    def answers(self) -> list[TopicPrediction]:
        """Return the answers; each carries its request's key and id."""
        records = self.log.read(PREDICTIONS, 0, 0, 100)
        found = [TopicPrediction.model_validate_json(record.value or b"") for record in records]
        for record, answer in zip(records, found, strict=True):
            assert record.key == record.headers["id"] == b"%d" % answer.request_offset
            assert (answer.prediction is None) != (answer.error is None)
        return found


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Return a rig without a generation yet."""
    with http_service(limits=LimitSettings(max_message_bytes=2048)) as service:
        made = Rig(tmp_path, service)
        yield made
        made.state.close()
        made.log.close()


def test_answers_are_those_of_the_service_in_order(rig: Rig) -> None:
    """More requests than go at once are answered turn by turn, the same as over HTTP."""
    rig.service.slot.publish(LinearServable(1), 1)
    images = [encoded_image(n) for n in range(6)]
    rig.ask(*images)
    topic = rig.topic()
    assert [topic.turn(), topic.turn(), topic.turn()] == [0.0, 0.0, POLL_SECONDS]
    answers = rig.answers()
    assert [answer.request_offset for answer in answers] == list(range(6))
    for image, answer in zip(images, answers, strict=True):
        url = f"{rig.service.url}/v1/streams/s/classify?top=2"
        over_http = httpx.post(url, content=image, headers={"content-type": "image/png"}).json()
        assert answer.prediction is not None
        assert answer.prediction.label == over_http["label"]
        assert answer.prediction.generation == over_http["generation"]
        assert len(answer.prediction.top) == 2
    assert rig.service.count("topic", "ok") == 6


def test_what_cannot_be_answered_is_answered_with_the_reason(rig: Rig) -> None:
    """Each bad request gets its error, the good one beside them its prediction."""
    rig.service.slot.publish(LinearServable(1), 1)
    rig.ask(b"no image", None, b"\x89PNG\r\n\x1a\n broken")
    rig.ask(encoded_image(1), b"\x89PNG\r\n\x1a\n" + bytes(4000))
    topic = rig.topic()
    topic.turn()
    topic.turn()
    answers = rig.answers()
    assert [answer.error is None for answer in answers] == [False, False, False, True, False]
    assert "no image format" in (answers[0].error or "")
    assert "the limit is 2048" in (answers[4].error or "")
    assert rig.service.count("topic", "bad_request") == 4


def test_a_fault_of_the_daemon_is_answered_and_not_explained(rig: Rig) -> None:
    """The next start must not meet it again; what went wrong is in the log alone."""
    rig.service.slot.publish(FailingServable(1), 1)
    rig.ask(encoded_image(1))
    rig.topic().turn()
    (answer,) = rig.answers()
    assert answer.error == "internal error: see the daemon's log"
    assert rig.service.count("topic", "error") == 1


def test_requests_wait_for_the_first_generation(rig: Rig) -> None:
    """Nothing is answered before, everything after."""
    rig.ask(encoded_image(1), encoded_image(2))
    topic = rig.topic()
    assert topic.turn() > 0
    assert rig.answers() == []
    rig.service.slot.publish(LinearServable(1), 1)
    topic.turn()
    assert len(rig.answers()) == 2


def test_an_answer_that_was_not_taken_is_given_again(rig: Rig) -> None:
    """The offset moves after the log has confirmed; a repetition has the same idempotency key."""
    rig.service.slot.publish(LinearServable(1), 1)
    rig.ask(encoded_image(1))
    flaky = FlakySink(1)
    topic = rig.topic(sink=flaky)
    assert topic.turn() > 0
    assert Place(REQUESTS, 0) not in rig.state.state.next_offsets(STREAM)
    topic.turn()
    assert rig.state.state.next_offsets(STREAM)[Place(REQUESTS, 0)] == 1
    ((where, message),) = flaky.sent
    assert (where, message.idempotency_key) == (PREDICTIONS, "s.requests/0/0")


def test_a_restart_answers_what_is_left(rig: Rig) -> None:
    """Another owner on the same state goes on behind the last answer."""
    rig.service.slot.publish(LinearServable(1), 1)
    rig.ask(encoded_image(1))
    rig.topic().turn()
    rig.ask(encoded_image(2))
    rig.topic().turn()
    assert [answer.request_offset for answer in rig.answers()] == [0, 1]


def test_the_thread_answers_and_ends_when_told(rig: Rig) -> None:
    """Start, stop, join; nothing has failed."""
    rig.service.slot.publish(LinearServable(1), 1)
    rig.ask(encoded_image(1))
    topic = rig.topic()
    topic.start()
    while not rig.answers():
        assert topic.failed is None
    topic.stop()
    assert topic.join(10)
    assert topic.failed is None
