"""A stream of texts through a real daemon: real encoder and texts, the topics and serving of images."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from cl_engine import assets
from daemon.clock import SystemClock
from daemon.messages.dead_letter import ERROR_MESSAGE, ERROR_REASON
from daemon.messages.encode import Item, arrow_class_batch, binary_event, json_class_batch, raw_message
from daemon.messages.predictions import TopicPrediction
from daemon.serving.v2 import HEADER_LENGTH
from daemon.sources.base import Message, Record
from daemon.sources.log import EmbeddedLog
from tests.support.http_service import encoded_image
from tests.support.running_daemon import STREAM, RunningDaemon, daemon_settings

pytestmark = pytest.mark.integration

TEXT = "text/plain"
INTENTS = ("balance", "translate", "weather", "book_hotel")
TRAINING, TESTS = 30, 10


def intents() -> tuple[dict[str, list[bytes]], dict[str, list[bytes]]]:
    """Return some real training and test texts by intent."""
    data = assets.load_texts("clinc150")

    def of(texts: Sequence[str], labels: Sequence[int], name: str, count: int) -> list[bytes]:
        wanted = data.class_names.index(name)
        chosen = [text for text, label in zip(texts, labels, strict=True) if label == wanted]
        return [text.encode() for text in chosen[:count]]

    train = {name: of(data.train_texts, data.train_labels.tolist(), name, TRAINING) for name in INTENTS}
    test = {name: of(data.test_texts, data.test_labels.tolist(), name, TESTS) for name in INTENTS}
    return train, test


def text_settings(directory: Path) -> dict[str, Any]:
    """Return a configuration with MiniLM as backbone and short sessions."""
    settings = daemon_settings(directory / "state", requests={"enabled": True})
    return settings | {
        "backbone": {"name": "all-MiniLM-L6-v2", "max_tokens": 32},
        "limits": {"max_text_bytes": 1000},
    }


def classify(daemon: RunningDaemon, payload: bytes, content_type: str = TEXT) -> httpx.Response:
    """Ask for one text's class by the plain upload."""
    url = f"{daemon.url}/v1/streams/{STREAM}/classify"
    return httpx.post(url, content=payload, headers={"content-type": content_type}, timeout=30.0)


def infer(daemon: RunningDaemon, texts: Sequence[bytes]) -> tuple[list[str], list[str]]:
    """Ask by the V2 protocol, in JSON and with a binary input; return both answers' labels."""
    url = f"{daemon.url}/v2/models/{STREAM}/infer"
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)]}
    in_json = {"inputs": [tensor | {"data": [text.decode() for text in texts]}]}
    blob = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    header = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(blob)}}]}).encode()
    answers = (
        httpx.post(url, json=in_json, timeout=30.0),
        httpx.post(url, content=header + blob, headers={HEADER_LENGTH: str(len(header))}, timeout=30.0),
    )
    first, second = (answer.json()["outputs"][0]["data"] for answer in answers)
    return first, second


def read(daemon: RunningDaemon, topic: str) -> Sequence[Record]:
    """Read a topic of the embedded log."""
    log = EmbeddedLog(daemon.directory / "state" / "topics.db", SystemClock())
    try:
        return [record for record in log.read(topic, 0, 0, 100) if isinstance(record, Record)]
    finally:
        log.close()


def ask(daemon: RunningDaemon, requests: Sequence[Message]) -> Sequence[TopicPrediction]:
    """Ask by the request topic and wait for the answers."""
    log = EmbeddedLog(daemon.directory / "state" / "topics.db", SystemClock())
    try:
        log.append(f"{STREAM}.requests", requests)
    finally:
        log.close()
    daemon.wait(lambda _: len(read(daemon, f"{STREAM}.predictions")) == len(requests))
    return [
        TopicPrediction.model_validate_json(r.value or b"") for r in read(daemon, f"{STREAM}.predictions")
    ]


def produce_first(daemon: RunningDaemon, train: Mapping[str, Sequence[bytes]]) -> None:
    """Two classes as Arrow class batches, and a record of each kind that a text stream must refuse."""
    batches = [arrow_class_batch(n, TEXT, [Item(t) for t in train[n]]) for n in INTENTS[:2]]
    bad = [
        raw_message("balance", "image/png", Item(encoded_image())),
        raw_message("balance", TEXT, Item(b"caf\xe9")),
        raw_message("balance", TEXT, Item(b"  \n")),
        raw_message("balance", TEXT, Item(b"how " * 300)),
        raw_message("balance", "text/plain; charset=latin-1", Item(b"how much is left")),
    ]
    daemon.append([*batches, *bad])


def produce_second(daemon: RunningDaemon, train: Mapping[str, Sequence[bytes]]) -> None:
    """Two classes more: one as a JSON class batch, one as raw records and CloudEvents by halves."""
    third, fourth = INTENTS[2:]
    half = TRAINING // 2
    daemon.append([json_class_batch(third, TEXT, [Item(text) for text in train[third]])])
    daemon.append([raw_message(fourth, f"{TEXT}; charset=UTF-8", Item(t)) for t in train[fourth][:half]])
    daemon.append(
        [
            binary_event(fourth, TEXT, text, source="/test", event_id=str(number))
            for number, text in enumerate(train[fourth][half:])
        ]
    )


def test_texts_are_learnt_in_sessions_and_served(tmp_path: Path) -> None:
    """Two sessions go live; upload, V2 in both framings and the request topic give the right intents."""
    train, test = intents()
    with RunningDaemon(tmp_path, text_settings(tmp_path)) as daemon:
        produce_first(daemon, train)
        daemon.wait_live(1)
        produce_second(daemon, train)
        daemon.wait_live(2)
        texts = [text for name in INTENTS for text in test[name]]
        truth = [name for name in INTENTS for _ in test[name]]
        in_json, in_binary = infer(daemon, texts)
        assert in_json == in_binary
        assert sum(a == b for a, b in zip(in_json, truth, strict=True)) >= 0.95 * len(truth)
        assert [classify(daemon, text).json()["label"] for text in texts[::10]] == in_json[::10]
        # What a client sends that names no type is a text, for the stream takes nothing else.
        unnamed = classify(daemon, texts[0], "application/x-www-form-urlencoded")
        assert unnamed.json()["label"] == in_json[0]

        answers = ask(
            daemon, [Message(texts[0]), Message(texts[15], headers={"content-type": TEXT.encode()})]
        )
        assert [a.prediction.label for a in answers if a.prediction is not None] == [in_json[0], in_json[15]]

        model = httpx.get(f"{daemon.url}/v2/models/{STREAM}").json()
        assert [(i["name"], i["datatype"], i["shape"]) for i in model["inputs"]] == [("text", "BYTES", [-1])]
        refused = classify(daemon, encoded_image(), "image/png")
        assert refused.status_code == httpx.codes.BAD_REQUEST
        assert "'image/png' is not a text, which this stream takes: use text/plain" in refused.text
        assert "the limit is 1000" in classify(daemon, b"how " * 300).text

        letters = read(daemon, f"{STREAM}.dlq")
        found = [(r.headers[ERROR_REASON].decode(), r.headers[ERROR_MESSAGE].decode()) for r in letters]
        expected = [
            ("bad_content_type", "'image/png' is none that this stream takes: use one of text/plain"),
            ("bad_payload", "not UTF-8"),
            ("bad_payload", "the text is empty"),
            ("too_large", "the text has 1200 bytes, the limit is 1000"),
            ("bad_content_type", "charset"),
        ]
        assert [reason for reason, _ in found] == [reason for reason, _ in expected]
        assert all(part in said for (_, said), (_, part) in zip(found, expected, strict=True))
        stored = daemon.sample("accrete_samples_total", outcome="stored")
        assert stored == sum(len(texts) for texts in train.values())
