"""From a record of the log to samples and dead letters.

The format follows from the headers: `content-type` names a class batch (JSON or Arrow) or a
CloudEvent in structured mode, a `ce_specversion` header means a CloudEvent in binary mode, anything
else is a raw payload with the headers `label`, `content-type` and optionally `id`. Header names are
compared without regard to case. A sample without an id gets the SHA-256 of its label and payload, so
that the same sample sent twice counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import NamedTuple

from daemon.errors import DeadLetter, DeadLetterReason
from daemon.messages import checks, json_batch
from daemon.messages.candidate import Candidate, Unreadable
from daemon.messages.formats import (
    CLASS_BATCH_ARROW,
    CLASS_BATCH_JSON,
    CLOUDEVENT_HEADER_PREFIX,
    CLOUDEVENT_JSON,
    CLOUDEVENT_PREFIX,
    CONTENT_TYPE,
    CRITICAL,
    ID,
    LABEL,
    SCHEMA_VERSION,
    SCHEMA_VERSION_HEADER,
    media_type,
)
from daemon.settings import LimitSettings
from daemon.sources.base import Place, Record
from daemon.state.base import DeadSample, NewSample

# The content type that a message names, or None, to the media type of the payload; may raise `DeadLetter`.
_ContentTypeOf = Callable[[str | None], str]
_EVENT_ID = f"{CLOUDEVENT_HEADER_PREFIX}id"
_USUAL_HEADER_BYTES = 512
_HEADERS = frozenset({LABEL, CONTENT_TYPE, ID, SCHEMA_VERSION_HEADER, CRITICAL})
_EVENT_ATTRIBUTES = frozenset(
    {f"{CLOUDEVENT_HEADER_PREFIX}{name}" for name in ("specversion", "id", "source", "type", "label")}
)


@dataclass(frozen=True)
class Rejected:
    """A dead letter with what a person needs to repair and replay it.

    Attributes:
        dead: its place and the reason.
        value: the original bytes: of the record, or of the one sample of a class batch.
        headers: the record's headers; for one sample of a class batch also `label`, `content-type`
            and `id` as far as they are known, so that it is a raw message by itself.
    """

    dead: DeadSample
    value: bytes
    headers: Mapping[str, bytes]


class ParsedRecord(NamedTuple):
    """What one record holds: samples, dead letters, or neither (a tombstone); a tuple, as `Record`."""

    record: Record
    samples: tuple[NewSample, ...] = ()
    dead: tuple[Rejected, ...] = ()
    tombstone: bool = False


def parse_record(
    record: Record,
    limits: LimitSettings,
    default_content_type: str | None,
    on_sample: Callable[[], None] = lambda: None,
    *,
    accepted: frozenset[str] = checks.PAYLOAD_TYPES,
) -> ParsedRecord:
    """Read and check a record completely; whatever is wrong with it becomes a dead letter.

    A bad sample of a class batch is a dead letter alone, a bad envelope makes the whole record one.

    Args:
        record: as it came from the source.
        limits: bounds on sizes, lengths and pixels.
        default_content_type: media type of payloads whose message names none.
        on_sample: called before each sample is decoded, which may take long for a class batch.
        accepted: media types of payloads that the stream's backbone can decode.
    """
    if record.value is None:
        return ParsedRecord(record, tombstone=True)
    content_type_of = _content_type_of(default_content_type, accepted)
    place = record.place
    try:
        items = _items(record.value, _envelope(record.headers), limits, content_type_of)
        if isinstance(items, Candidate):
            on_sample()
            return ParsedRecord(record, (_sample(items, record, place, 0, limits, content_type_of),))
    except DeadLetter as error:
        return _whole(record, error)
    samples: list[NewSample] = []
    dead: list[Rejected] = []
    for position, item in enumerate(items):
        on_sample()
        try:
            samples.append(_sample(item, record, place, position, limits, content_type_of))
        except DeadLetter as error:
            dead.append(_single(record, position, error, item))
    return ParsedRecord(record, tuple(samples), tuple(dead))


@lru_cache(maxsize=64)
def _content_type_of(default: str | None, accepted: frozenset[str]) -> _ContentTypeOf:
    return partial(checks.checked_content_type, default=default, accepted=accepted)


class _Envelope(NamedTuple):
    """A record's headers, the media type that they give its value, and whether it is a binary CloudEvent."""

    headers: Mapping[str, str]
    kind: str
    event: bool


# One sample, or those of a class batch.
_Items = Candidate | Iterator[Candidate | Unreadable]


def _items(
    value: bytes, envelope: _Envelope, limits: LimitSettings, content_type_of: _ContentTypeOf
) -> _Items:
    headers, kind, event = envelope
    if len(value) > limits.max_message_bytes:
        raise DeadLetter(
            DeadLetterReason.TOO_LARGE,
            f"the message has {len(value)} bytes, the limit is {limits.max_message_bytes}: "
            "send smaller ones or raise limits.max_message_bytes",
        )
    if kind == CLASS_BATCH_JSON:
        return _json_batch(value, limits, content_type_of)
    if kind == CLASS_BATCH_ARROW:
        return _arrow_batch(value, limits, content_type_of)
    if kind == CLOUDEVENT_JSON:
        return json_batch.read_cloudevent(value)
    if kind.startswith(CLOUDEVENT_PREFIX):
        raise DeadLetter(
            DeadLetterReason.BAD_CONTENT_TYPE,
            f"the content type {checks.shown(kind)} is not supported: send CloudEvents as {CLOUDEVENT_JSON} "
            "or in binary mode",
        )
    return _binary_event(value, headers) if event else _raw(value, headers)


def _raw(value: bytes, headers: Mapping[str, str]) -> Candidate:
    return Candidate(headers.get(LABEL), headers.get(CONTENT_TYPE), headers.get(ID), value)


def _binary_event(value: bytes, headers: Mapping[str, str]) -> Candidate:
    attributes = {
        name.removeprefix(CLOUDEVENT_HEADER_PREFIX): text
        for name, text in headers.items()
        if name.startswith(CLOUDEVENT_HEADER_PREFIX)
    }
    json_batch.check_spec_version(attributes["specversion"])
    missing = [name for name in ("id", "source", "type") if not attributes.get(name)]
    if missing:
        raise DeadLetter(
            DeadLetterReason.BAD_ENVELOPE,
            f"the CloudEvent lacks {', '.join(CLOUDEVENT_HEADER_PREFIX + name for name in missing)}",
        )
    sample_id = json_batch.event_sample_id(attributes["source"], attributes["id"])
    return Candidate(attributes.get("label"), headers.get(CONTENT_TYPE), sample_id, value)


def _json_batch(value: bytes, limits: LimitSettings, content_type_of: _ContentTypeOf) -> _Items:
    envelope = json_batch.read_envelope(value)
    if len(envelope.samples) > limits.max_samples_per_message:
        raise DeadLetter(
            DeadLetterReason.TOO_LARGE,
            f"the class batch has {len(envelope.samples)} samples, "
            f"the limit is {limits.max_samples_per_message}: "
            "send fewer or raise limits.max_samples_per_message",
        )
    checks.checked_label(envelope.label, limits.max_label_length)
    content_type_of(envelope.content_type)
    return json_batch.read_samples(envelope)


def _arrow_batch(value: bytes, limits: LimitSettings, content_type_of: _ContentTypeOf) -> _Items:
    # pyarrow takes a third of a second to import, and many streams never see Arrow.
    from daemon.messages.arrow_batch import ArrowBatch

    batch = ArrowBatch(value, limits.max_samples_per_message)
    if batch.label is not None or not batch.labelled:
        checks.checked_label(batch.label, limits.max_label_length)
    if batch.content_type is not None:
        content_type_of(batch.content_type)
    return batch.samples()


def _sample(
    item: Candidate | Unreadable,
    record: Record,
    place: Place,
    position: int,
    limits: LimitSettings,
    content_type_of: _ContentTypeOf,
) -> NewSample:
    if isinstance(item, Unreadable):
        raise item.error
    label = checks.checked_label(item.label, limits.max_label_length)
    content_type = content_type_of(item.content_type)
    checks.check_payload(item.payload, content_type, limits.max_image_pixels, limits.max_text_bytes)
    return NewSample(
        checks.checked_id(item.id, label, item.payload),
        label,
        content_type,
        item.payload,
        place,
        record.offset,
        position,
        record.timestamp,
    )


def _envelope(headers: Mapping[str, bytes]) -> _Envelope:
    """Read the headers; those without an id come again and again, and are remembered if they are short."""
    if (
        ID in headers
        or _EVENT_ID in headers
        or sum(map(len, chain(headers, headers.values()))) > _USUAL_HEADER_BYTES
    ):
        return _read_headers(tuple(headers.items()))
    return _usual_headers(tuple(headers.items()))


def _read_headers(items: tuple[tuple[str, bytes], ...]) -> _Envelope:
    headers = _decoded(items)
    version = headers.get(SCHEMA_VERSION_HEADER, str(SCHEMA_VERSION))
    if version != str(SCHEMA_VERSION):
        raise DeadLetter(
            DeadLetterReason.UNKNOWN_SCHEMA,
            f"the header {SCHEMA_VERSION_HEADER} is {checks.shown(version)}, "
            f"this release reads {SCHEMA_VERSION}: update the daemon",
        )
    event = f"{CLOUDEVENT_HEADER_PREFIX}specversion" in headers
    understood = _HEADERS | _EVENT_ATTRIBUTES if event else _HEADERS
    if CRITICAL in headers:
        checks.check_critical(headers[CRITICAL].split(","), understood)
    return _Envelope(headers, media_type(headers.get(CONTENT_TYPE, "")), event)


# Half a megabyte at most.
_usual_headers = lru_cache(maxsize=1024)(_read_headers)


def _decoded(items: tuple[tuple[str, bytes], ...]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in items:
        key = name.lower()
        try:
            headers[key] = value.decode("utf-8")
        except UnicodeDecodeError as error:
            if key not in _HEADERS and key not in _EVENT_ATTRIBUTES:
                continue
            labels = {LABEL, f"{CLOUDEVENT_HEADER_PREFIX}{LABEL}"}
            reason = DeadLetterReason.BAD_LABEL if key in labels else DeadLetterReason.BAD_ENVELOPE
            raise DeadLetter(reason, f"the header {key} is not UTF-8: send UTF-8") from error
    return headers


def _whole(record: Record, error: DeadLetter) -> ParsedRecord:
    assert record.value is not None
    dead = DeadSample(record.place, record.offset, 0, error.reason, str(error))
    return ParsedRecord(record, dead=(Rejected(dead, record.value, record.headers),))


def _single(record: Record, position: int, error: DeadLetter, item: Candidate | Unreadable) -> Rejected:
    dead = DeadSample(record.place, record.offset, position, error.reason, str(error))
    if isinstance(item, Unreadable):
        return Rejected(dead, item.original, record.headers)
    known = {LABEL: item.label, CONTENT_TYPE: item.content_type, ID: item.id}
    # Without the batch's own content type: the letter is one raw sample.
    headers = {name: value for name, value in record.headers.items() if name.lower() != CONTENT_TYPE}
    headers |= {
        name: value.encode("utf-8", "backslashreplace") for name, value in known.items() if value is not None
    }
    return Rejected(dead, item.payload, headers)
