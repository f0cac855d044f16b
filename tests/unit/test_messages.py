"""Parsing and building messages, good ones and every kind of bad one."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc

from daemon.errors import DeadLetterReason
from daemon.messages.dead_letter import dead_letter_message
from daemon.messages.encode import (
    Item,
    arrow_class_batch,
    binary_event,
    json_class_batch,
    raw_message,
    structured_event,
)
from daemon.messages.formats import CLASS_BATCH_ARROW, CLASS_BATCH_JSON, CLOUDEVENT_JSON
from daemon.messages.parse import ParsedRecord, parse_record
from daemon.settings import LimitSettings
from daemon.sources.base import Message, Place
from tests.support.ingest import TOPIC, image, png_header, record

LIMITS = LimitSettings(max_message_bytes=4096, max_samples_per_message=5)
PNG = image()
DERIVED_ID = hashlib.sha256(b"cat\0" + PNG).hexdigest()


def parsed(message: Message, default_content_type: str | None = None) -> ParsedRecord:
    """Parse a message that lies at offset 9."""
    return parse_record(record(message, offset=9), LIMITS, default_content_type)


def raw(value: bytes | None = PNG, **headers: str | bytes) -> Message:
    """Build a raw message; `content_type` stands for the header `content-type`."""
    named = {"label": "cat", "content_type": "image/png"} | headers
    return Message(
        value,
        headers={
            name.replace("_", "-"): text if isinstance(text, bytes) else text.encode()
            for name, text in named.items()
        },
    )


def event(value: bytes = PNG, **changes: str | None) -> Message:
    """Build a CloudEvent in binary mode; None leaves a header out."""
    headers = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/cam", "ce_type": "t", "ce_label": "cat"}
    headers |= {"content-type": "image/png"} | changes
    return Message(value, headers={name: text.encode() for name, text in headers.items() if text is not None})


def json_message(content: Any, content_type: str = CLASS_BATCH_JSON) -> Message:
    """Build a message of JSON."""
    value = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Message(value, headers={"content-type": content_type.encode()})


def batch(**changes: Any) -> dict[str, Any]:
    """Build the JSON of a class batch of one text."""
    content = {
        "schema_version": 1,
        "label": "cat",
        "content_type": "text/plain",
        "samples": [{"data": base64.b64encode(b"words").decode()}],
    }
    return {name: value for name, value in (content | changes).items() if value is not None}


def arrow_message(
    columns: Mapping[str, Any], metadata: Mapping[str, str] | None = None, compression: str | None = None
) -> Message:
    """Build an Arrow IPC stream with one record batch."""
    rows = pa.record_batch(dict(columns)).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, rows.schema, options=ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(rows)
    return Message(sink.getvalue().to_pybytes(), headers={"content-type": CLASS_BATCH_ARROW.encode()})


class TestGoodMessages:
    @pytest.mark.parametrize(
        ("message", "sample_id"),
        [
            (raw_message("cat", "image/png", Item(PNG)), DERIVED_ID),
            (raw_message("cat", "image/png", Item(PNG, "my-id")), "my-id"),
            (binary_event("cat", "image/png", PNG, source="/cam/1", event_id="7"), "/cam/1 7"),
            (structured_event("cat", "image/png", PNG, source="/cam/1", event_id="7"), "/cam/1 7"),
            (json_class_batch("cat", "image/png", [Item(PNG)]), DERIVED_ID),
            (json_class_batch("cat", "image/png", [Item(PNG, "my-id")]), "my-id"),
            (arrow_class_batch("cat", "image/png", [Item(PNG)]), DERIVED_ID),
            (arrow_class_batch("cat", "image/png", [Item(PNG, "my-id")]), "my-id"),
        ],
    )
    def test_every_format_round_trips(self, message: Message, sample_id: str) -> None:
        """Whatever the format, the same sample comes out, with its place in the stream."""
        result = parsed(message)
        assert (result.dead, result.tombstone) == ((), False)
        (sample,) = result.samples
        assert (sample.id, sample.label, sample.content_type, sample.payload) == (
            sample_id,
            "cat",
            "image/png",
            PNG,
        )
        assert (sample.place, sample.offset, sample.position, sample.timestamp) == (
            Place(TOPIC, 0),
            9,
            0,
            5.0,
        )

    @pytest.mark.parametrize("build", [json_class_batch, arrow_class_batch])
    def test_a_class_batch_keeps_the_order(self, build: Any) -> None:
        """Positions count the samples of the message."""
        items = [Item(image(n), f"id-{n}" if n != 1 else None) for n in range(3)]
        result = parsed(build("cat", "image/png", items))
        assert [s.position for s in result.samples] == [0, 1, 2]
        assert [s.payload for s in result.samples] == [item.payload for item in items]
        assert result.samples[2].id == "id-2"

    def test_a_tombstone_is_legal(self) -> None:
        """No value, whatever the headers: neither sample nor dead letter."""
        result = parsed(Message(None, headers={"label": b"\xff"}))
        assert (result.tombstone, result.samples, result.dead) == (True, (), ())

    @pytest.mark.parametrize(
        ("message", "accepted", "remedy"),
        [
            (raw(), {"text/plain"}, "'image/png' is none that this stream takes: use one of text/plain"),
            (raw(b"my card", content_type="text/plain"), {"image/png"}, "use one of image/png"),
            (event(), {"text/plain"}, "'image/png'"),
            (json_class_batch("cat", "image/png", [Item(PNG)]), {"text/plain"}, "'image/png'"),
            (arrow_class_batch("cat", "image/png", [Item(PNG)]), {"text/plain"}, "'image/png'"),
            (raw(content_type="video/mp4"), {"image/png"}, "use one of image/png"),
        ],
    )
    def test_a_stream_takes_what_its_backbone_can_decode(
        self, message: Message, accepted: set[str], remedy: str
    ) -> None:
        """An image is no use to a stream of texts, nor a text to one of images."""
        limits = LimitSettings()
        (rejected,) = parse_record(record(message, offset=9), limits, None, accepted=frozenset(accepted)).dead
        assert rejected.dead.reason is DeadLetterReason.BAD_CONTENT_TYPE
        assert remedy in rejected.dead.message

    def test_a_text_has_a_largest_size(self) -> None:
        """In bytes of UTF-8, of each sample of a class batch too."""
        limits = LimitSettings(max_text_bytes=6)
        texts = [Item("grün!".encode()), Item("grünes".encode())]
        found = parse_record(record(json_class_batch("green", "text/plain", texts), offset=9), limits, None)
        assert [sample.payload for sample in found.samples] == [texts[0].payload]
        (rejected,) = found.dead
        assert rejected.dead.reason is DeadLetterReason.TOO_LARGE
        assert "7 bytes, the limit is 6: send a part of it or raise limits.max_text_bytes" in (
            rejected.dead.message
        )

    @pytest.mark.parametrize(
        ("kind", "content_type"),
        [("JPEG", "image/jpeg"), ("WEBP", "IMAGE/WebP; q=1"), ("BMP", "image/bmp"), ("GIF", "image/gif")],
    )
    def test_image_types(self, kind: str, content_type: str) -> None:
        """Media types are compared without case and parameters, and stored so."""
        (sample,) = parsed(raw(image(kind=kind), content_type=content_type)).samples
        assert sample.content_type == content_type.split(";")[0].lower()

    def test_texts_and_defaults(self) -> None:
        """A text is UTF-8; a missing content type is the stream's default."""
        message = Message("häuser".encode(), headers={"label": b"cat"})
        assert parsed(message, "text/plain").samples[0].content_type == "text/plain"
        assert parsed(raw(b"x", content_type="text/plain; charset=UTF-8")).dead == ()

    def test_labels_are_normalised(self) -> None:
        """Surrounding space goes, and a letter with its accent apart is the same letter."""
        (composed,) = parsed(raw(label=" caf\u00e9 ")).samples
        (decomposed,) = parsed(raw(label="cafe\u0301")).samples
        assert composed.label == decomposed.label == "caf\u00e9"
        assert composed.id == decomposed.id

    def test_header_names_have_no_case(self) -> None:
        """`Content-Type` and `Label` are understood."""
        assert parsed(Message(PNG, headers={"Label": b"cat", "Content-Type": b"image/png"})).samples

    def test_what_is_not_known_is_ignored_unless_critical(self) -> None:
        """Unknown headers, fields, attributes and metadata do no harm."""
        text = pa.array([b"words"], pa.binary())
        labels = {"label": "cat", "content_type": "text/plain", "unknown": "x"}
        for message in (
            raw(unknown="x", other=b"\xff"),
            event(ce_unknown="x"),
            json_message(batch(unknown={"deep": 1}, samples=[{"data": "YQ==", "unknown": 2}])),
            arrow_message({"data": text, "unknown": pa.array([1])}, labels),
            raw(critical="label, content-type"),
            json_message(batch(critical=["label", "samples"])),
        ):
            result = parsed(message)
            assert (len(result.samples), result.dead) == (1, ())

    def test_arrow_columns_win_over_metadata(self) -> None:
        """Label and content type may differ from row to row."""
        columns = {
            "data": pa.array([b"a text", PNG, b"words"], pa.large_binary()),
            "label": pa.array(["dog", "cat", None], pa.large_string()),
            "content_type": pa.array(["text/plain", "image/png", None]),
        }
        result = parsed(arrow_message(columns, {"label": "ant", "content_type": "text/plain"}))
        assert [(s.label, s.content_type) for s in result.samples] == [
            ("dog", "text/plain"),
            ("cat", "image/png"),
            ("ant", "text/plain"),
        ]


LONG = "x" * 300
TEXT_COLUMN = pa.array([b"words"], pa.binary())
METADATA = {"label": "cat", "content_type": "text/plain"}
BAD = {
    "truncated JPEG": (
        raw(image(kind="JPEG", side=256)[:-100], content_type="image/jpeg"), "bad_payload", "truncated"
    ),
    "truncated PNG": (raw(image(side=256)[:-300]), "bad_payload", "truncated"),
    "huge PNG header": (raw(png_header(50_000, 50_000)), "bad_payload", "larger than the limit"),
    "JPEG that is a PNG": (raw(content_type="image/jpeg"), "bad_payload", "not a JPEG image"),
    "bytes that are no image": (raw(b"\x00" * 50), "bad_payload", "not a PNG image"),
    "empty payload": (raw(b""), "bad_payload", "empty"),
    "text that is not UTF-8": (raw(b"\xff", content_type="text/plain"), "bad_payload", "not UTF-8"),
    "blank text": (raw(b" \n", content_type="text/plain"), "bad_payload", "empty"),
    "no label": (Message(PNG, headers={"content-type": b"image/png"}), "bad_label", "missing"),
    "empty label": (raw(label=""), "bad_label", "empty"),
    "blank label": (raw(label=" \t "), "bad_label", "empty"),
    "long label": (raw(label=LONG), "bad_label", "300 characters, the limit is 128"),
    "control characters in the label": (raw(label="ca\x07t"), "bad_label", "control character"),
    "line separator in the label": (raw(label="ca\u2028t"), "bad_label", "control character"),
    "label that is not UTF-8": (raw(label=b"\xff\xfe"), "bad_label", "not UTF-8"),
    "wrong content type": (raw(content_type="application/pdf"), "bad_content_type", "'application/pdf'"),
    "no content type": (Message(PNG, headers={"label": b"cat"}), "bad_content_type", "missing"),
    "other charset": (raw(b"x", content_type='text/plain; charset="latin-1"'), "bad_content_type", "UTF-8"),
    "Avro CloudEvent": (
        event(**{"content-type": "application/cloudevents+avro"}), "bad_content_type", "avro"
    ),
    "control characters in the id": (raw(id="a\nb"), "bad_envelope", "sample id"),
    "endless id": (raw(id=LONG * 2), "bad_envelope", "sample id"),
    "unknown schema version header": (raw(schema_version="2"), "unknown_schema", "'2'"),
    "unknown critical header": (raw(critical="label, encryption"), "unknown_schema", "'encryption'"),
    "message over the limit": (raw(bytes(5000)), "too_large", "5000 bytes, the limit is 4096"),
    "invalid JSON": (json_message(b'{"schema_version": 1,'), "bad_envelope", "not valid JSON"),
    "JSON nested without end": (json_message(b"[" * 4000), "bad_envelope", "not valid JSON"),
    "JSON list": (json_message([1]), "bad_envelope", "not an object"),
    "JSON of another version": (json_message(batch(schema_version=2)), "unknown_schema", "'2'"),
    "JSON without version": (json_message(batch(schema_version=None)), "bad_envelope", "schema_version"),
    "JSON without label": (json_message(batch(label=None)), "bad_envelope", "label"),
    "JSON with an empty label": (json_message(batch(label=" ")), "bad_label", "empty"),
    "JSON with a wrong content type": (
        json_message(batch(content_type="video/mp4")), "bad_content_type", "video/mp4"
    ),
    "JSON without samples": (json_message(batch(samples=[])), "bad_envelope", "samples"),
    "JSON with too many samples": (json_message(batch(samples=[{}] * 6)), "too_large", "6 samples"),
    "image over the limit": (raw(png_header(9_000, 9_000)), "bad_payload", "9000 x 9000"),
    "unknown critical field": (json_message(batch(critical=["zip"])), "unknown_schema", "'zip'"),
    "CloudEvent of another version": (event(ce_specversion="2.0"), "unknown_schema", "'2.0'"),
    "CloudEvent without id": (event(ce_id=None), "bad_envelope", "ce_id"),
    "CloudEvent without label": (event(ce_label=None), "bad_label", "missing"),
    "structured CloudEvent without label": (
        json_message({"specversion": "1.0", "id": "1", "source": "/", "type": "t"}, CLOUDEVENT_JSON),
        "bad_label", "label",
    ),
    "structured CloudEvent without data": (
        json_message(
            {"specversion": "1.0", "id": "1", "source": "/", "type": "t", "label": "cat"}, CLOUDEVENT_JSON
        ),
        "bad_envelope", "data",
    ),
    "bytes that are no Arrow": (
        Message(b"ARROW1", headers={"content-type": CLASS_BATCH_ARROW.encode()}), "bad_envelope", "Arrow"
    ),
    "Arrow without data": (arrow_message({"id": pa.array(["1"])}, METADATA), "bad_envelope", "column data"),
    "Arrow with texts as data": (
        arrow_message({"data": pa.array(["1"])}, METADATA), "bad_envelope", "binary"
    ),
    "Arrow with numbers as ids": (
        arrow_message({"data": TEXT_COLUMN, "id": pa.array([1])}, METADATA), "bad_envelope", "column id"
    ),
    "Arrow with a dictionary": (
        arrow_message({"data": TEXT_COLUMN, "label": pa.array(["cat"]).dictionary_encode()}, METADATA),
        "bad_envelope", "column label is of type dictionary",
    ),
    "compressed Arrow": (
        arrow_message({"data": pa.array([bytes(100_000)], pa.binary())}, METADATA, "zstd"),
        "bad_envelope", "is compressed",
    ),
    "compressed Arrow dictionary": (
        arrow_message(
            {"data": TEXT_COLUMN, "label": pa.array(["x" * 9999]).dictionary_encode()}, METADATA, "lz4"
        ),
        "bad_envelope", "is compressed",
    ),
    "Arrow without label": (arrow_message({"data": TEXT_COLUMN}), "bad_label", "missing"),
    "Arrow of another version": (
        arrow_message({"data": TEXT_COLUMN}, METADATA | {"schema_version": "3"}), "unknown_schema", "'3'"
    ),
    "Arrow without rows": (arrow_message({"data": TEXT_COLUMN[:0]}, METADATA), "bad_envelope", "no samples"),
    "Arrow with too many rows": (
        arrow_message({"data": pa.array([b"x"] * 6, pa.binary())}, METADATA), "too_large", "more than 5"
    ),
}  # fmt: skip


class TestBadMessages:
    @pytest.mark.parametrize("name", BAD)
    def test_a_bad_record_is_one_dead_letter(self, name: str) -> None:
        """The reason is of the closed set, the message says what is wrong, the bytes are the original."""
        message, reason, words = BAD[name]
        result = parsed(message)
        assert (result.samples, result.tombstone) == ((), False)
        (rejected,) = result.dead
        assert rejected.dead.reason == DeadLetterReason(reason)
        assert words in rejected.dead.message
        assert rejected.value == message.value
        letter = dead_letter_message(result.record, rejected)
        assert letter.idempotency_key == f"{TOPIC}/0/9/0"
        assert letter.headers["accrete-error-reason"] == reason.encode()
        assert letter.headers["accrete-source-offset"] == b"9"
        assert message.headers.items() <= letter.headers.items()

    def test_a_bad_sample_of_a_json_batch_is_dead_alone(self) -> None:
        """The others are stored; each letter can be repaired and sent by itself."""
        samples = [
            {"data": base64.b64encode(PNG).decode(), "id": "good"},
            {"data": base64.b64encode(b"no image").decode(), "id": "bad"},
            {"data": "!!"},
        ]
        result = parsed(json_message(batch(content_type="image/png", samples=samples)))
        assert [(s.id, s.position) for s in result.samples] == [("good", 0)]
        damaged, unreadable = result.dead
        assert (damaged.value, damaged.dead.position) == (b"no image", 1)
        repaired = parsed(Message(PNG, headers=damaged.headers))
        assert [(s.id, s.label) for s in repaired.samples] == [("bad", "cat")]
        assert (unreadable.dead.reason, unreadable.dead.position) == (DeadLetterReason.BAD_ENVELOPE, 2)
        content = json.loads(unreadable.value)
        assert content.pop("samples") == [{"data": "!!"}]
        content["samples"] = samples[:1]
        again = parsed(Message(json.dumps(content).encode(), headers=unreadable.headers))
        assert [s.label for s in again.samples] == ["cat"]

    def test_a_bad_row_of_an_arrow_batch_is_dead_alone(self) -> None:
        """A null (its bytes are none), a damaged image and a row without label leave the rest as it is."""
        full = pa.array([PNG, PNG, b"no image", PNG], pa.binary())
        columns = {
            "data": pa.Array.from_buffers(full.type, 4, [pa.py_buffer(b"\x0d"), *full.buffers()[1:]]),
            "label": pa.array(["cat", "cat", "cat", None]),
        }
        result = parsed(arrow_message(columns, {"content_type": "image/png"}))
        assert [s.position for s in result.samples] == [0]
        assert [(d.dead.position, d.dead.reason.value) for d in result.dead] == [
            (1, "bad_payload"),
            (2, "bad_payload"),
            (3, "bad_label"),
        ]

    def test_corrupt_arrow_offsets_are_caught(self) -> None:
        """Offsets that point outside the buffer must not read foreign memory."""
        message = arrow_message({"data": pa.array([b"AAAA", b"BBBB"], pa.binary())}, METADATA)
        value = message.value or b""
        offsets = (0).to_bytes(4, "little") + (4).to_bytes(4, "little") + (8).to_bytes(4, "little")
        assert value.count(offsets) == 1
        wrong = offsets[:4] + (4).to_bytes(4, "little") + (2**30).to_bytes(4, "little")
        (rejected,) = parsed(Message(value.replace(offsets, wrong), headers=message.headers)).dead
        assert rejected.dead.reason == DeadLetterReason.BAD_ENVELOPE

    @given(
        st.one_of(st.none(), st.binary(max_size=200), st.just(PNG)),
        st.dictionaries(
            st.sampled_from(
                ["label", "content-type", "id", "schema-version", "critical", "ce_specversion", "ce_id"]
            ),
            st.one_of(
                st.binary(max_size=20),
                st.sampled_from(
                    [b"image/png", b"text/plain", b"1", b"1.0", b"cat"]
                    + [t.encode() for t in (CLASS_BATCH_JSON, CLASS_BATCH_ARROW, CLOUDEVENT_JSON)]
                ),
            ),
        ),
    )
    def test_no_message_stops_the_parser(self, value: bytes | None, headers: dict[str, bytes]) -> None:
        """Any bytes are a sample, a dead letter or a tombstone, and exactly one of them."""
        result = parsed(Message(value, headers=headers))
        assert len(result.samples) + len(result.dead) + result.tombstone == 1
