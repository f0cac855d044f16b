"""Reading JSON class batches and CloudEvents in structured mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from daemon.errors import DeadLetter, DeadLetterReason
from daemon.messages.candidate import Candidate, Unreadable
from daemon.messages.checks import check_critical, shown
from daemon.messages.formats import CLOUDEVENT_SPEC_VERSION, SCHEMA_VERSION
from daemon.messages.models import ClassBatch, ClassBatchEnvelope, ClassBatchSample, CloudEvent

_BATCH_FIELDS = frozenset(ClassBatch.model_fields) | frozenset(ClassBatchSample.model_fields)
_EVENT_FIELDS = frozenset(CloudEvent.model_fields)


def read_envelope(value: bytes) -> ClassBatchEnvelope:
    """Read a class batch up to its samples.

    Raises:
        DeadLetter: not JSON, another schema version, an unknown critical field, a field missing or wrong.
    """
    content = _json_object(value)
    version = content.get("schema_version")
    if version is not None and (isinstance(version, bool) or version != SCHEMA_VERSION):
        raise DeadLetter(
            DeadLetterReason.UNKNOWN_SCHEMA,
            f"schema_version is {shown(str(version))}, this release reads {SCHEMA_VERSION}: "
            "update the daemon",
        )
    try:
        envelope = ClassBatchEnvelope.model_validate(content)
    except ValidationError as error:
        raise DeadLetter(DeadLetterReason.BAD_ENVELOPE, f"the class batch: {_mistakes(error)}") from error
    check_critical(envelope.critical, _BATCH_FIELDS)
    return envelope


def read_samples(envelope: ClassBatchEnvelope) -> Iterator[Candidate | Unreadable]:
    """Yield the samples of a class batch; one that is wrong does not end the others."""
    for item in envelope.samples:
        try:
            sample = ClassBatchSample.model_validate(item)
        except ValidationError as error:
            # The letter is a class batch of this sample alone: to be repaired and sent again as it is.
            alone = to_json(envelope.model_dump(exclude_defaults=True) | {"samples": [item]})
            yield Unreadable(
                DeadLetter(DeadLetterReason.BAD_ENVELOPE, f"the sample: {_mistakes(error)}"), alone
            )
        else:
            yield Candidate(envelope.label, envelope.content_type, sample.id, sample.data)


def read_cloudevent(value: bytes) -> Candidate:
    """Read a CloudEvent in structured mode.

    Raises:
        DeadLetter: not JSON, another version of CloudEvents, an attribute missing or wrong, no data.
    """
    content = _json_object(value)
    check_spec_version(content.get("specversion"))
    if "label" not in content:
        raise DeadLetter(
            DeadLetterReason.BAD_LABEL, "the CloudEvent has no extension attribute label: name the class"
        )
    try:
        event = CloudEvent.model_validate(content)
    except ValidationError as error:
        raise DeadLetter(DeadLetterReason.BAD_ENVELOPE, f"the CloudEvent: {_mistakes(error)}") from error
    check_critical(event.critical.split(","), _EVENT_FIELDS)
    if (event.data is None) == (event.data_base64 is None):
        raise DeadLetter(
            DeadLetterReason.BAD_ENVELOPE, "the CloudEvent must have data (a text) or data_base64, not both"
        )
    payload = event.data_base64 if event.data is None else _utf8(event.data)
    assert payload is not None
    return Candidate(event.label, event.datacontenttype, event_sample_id(event.source, event.id), payload)


def check_spec_version(version: Any) -> None:
    """Refuse a version of CloudEvents that this release does not know.

    Raises:
        DeadLetter: it is missing or another one.
    """
    if version != CLOUDEVENT_SPEC_VERSION:
        raise DeadLetter(
            DeadLetterReason.UNKNOWN_SCHEMA,
            f"the CloudEvent's specversion is {shown(str(version))}, "
            f"this release reads {CLOUDEVENT_SPEC_VERSION}",
        )


def event_sample_id(source: str, event_id: str) -> str:
    """Join source and id, which are unique together; a URI has no space, so the space is unambiguous."""
    return f"{source} {event_id}"


def _json_object(value: bytes) -> dict[str, Any]:
    try:
        content = from_json(value)
    except ValueError as error:
        raise DeadLetter(DeadLetterReason.BAD_ENVELOPE, f"the message is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DeadLetter(
            DeadLetterReason.BAD_ENVELOPE, f"the message is a JSON {type(content).__name__}, not an object"
        )
    return content


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DeadLetter(
            DeadLetterReason.BAD_PAYLOAD, f"data is not valid Unicode: {error.reason}"
        ) from error


def _mistakes(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in e['loc']) or 'it'}: {e['msg']}"
        for e in error.errors(include_url=False, include_input=False)[:5]
    )
