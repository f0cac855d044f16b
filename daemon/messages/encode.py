"""The producers' side: messages in each format from samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.messages.formats import (
    CLASS_BATCH_ARROW,
    CLASS_BATCH_JSON,
    CLOUDEVENT_JSON,
    CLOUDEVENT_SPEC_VERSION,
    CLOUDEVENT_TYPE,
    CONTENT_TYPE,
    ID,
    LABEL,
    SCHEMA_VERSION,
    SCHEMA_VERSION_HEADER,
)
from daemon.messages.models import ClassBatch, ClassBatchSample, CloudEvent
from daemon.sources.base import Message

_VERSION = {SCHEMA_VERSION_HEADER: str(SCHEMA_VERSION).encode()}


@dataclass(frozen=True)
class Item:
    """One payload to be produced; without an id the daemon derives one from label and payload."""

    payload: bytes
    id: str | None = None


def raw_message(label: str, content_type: str, item: Item) -> Message:
    """Build a raw message: the payload as it is, everything else in headers."""
    headers = {LABEL: label.encode(), CONTENT_TYPE: content_type.encode(), **_VERSION}
    if item.id is not None:
        headers[ID] = item.id.encode()
    return Message(item.payload, key=label.encode(), headers=headers)


def binary_event(label: str, content_type: str, payload: bytes, *, source: str, event_id: str) -> Message:
    """Build a CloudEvent in binary mode: attributes in `ce_` headers, the payload as it is."""
    headers = {
        "ce_specversion": CLOUDEVENT_SPEC_VERSION.encode(),
        "ce_id": event_id.encode(),
        "ce_source": source.encode(),
        "ce_type": CLOUDEVENT_TYPE.encode(),
        "ce_label": label.encode(),
        CONTENT_TYPE: content_type.encode(),
    }
    return Message(payload, key=label.encode(), headers=headers)


def structured_event(label: str, content_type: str, payload: bytes, *, source: str, event_id: str) -> Message:
    """Build a CloudEvent in structured mode: one JSON object with the payload in base64."""
    event = CloudEvent.model_construct(
        specversion=CLOUDEVENT_SPEC_VERSION,
        id=event_id,
        source=source,
        type=CLOUDEVENT_TYPE,
        label=label,
        datacontenttype=content_type,
        data_base64=payload,
    )
    value = event.model_dump_json(exclude_none=True, exclude_defaults=True).encode()
    return Message(value, key=label.encode(), headers={CONTENT_TYPE: CLOUDEVENT_JSON.encode()})


def json_class_batch(label: str, content_type: str, items: Sequence[Item]) -> Message:
    """Build a JSON class batch: several samples of one class.

    Raises:
        ValueError: no items.
    """
    _check_items(items)
    batch = ClassBatch.model_construct(
        schema_version=SCHEMA_VERSION,
        label=label,
        content_type=content_type,
        samples=[ClassBatchSample.model_construct(data=item.payload, id=item.id) for item in items],
    )
    value = batch.model_dump_json(exclude_none=True, exclude_defaults=True).encode()
    return Message(value, key=label.encode(), headers={CONTENT_TYPE: CLASS_BATCH_JSON.encode(), **_VERSION})


def arrow_class_batch(label: str, content_type: str, items: Sequence[Item]) -> Message:
    """Build an Arrow IPC class batch: several samples of one class, without base64's third more bytes.

    Raises:
        ValueError: no items.
    """
    # pyarrow takes a third of a second to import, and a producer of raw messages needs none of it.
    import pyarrow as pa
    from pyarrow import ipc

    _check_items(items)
    columns = {"data": pa.array([item.payload for item in items], pa.binary())}
    if any(item.id is not None for item in items):
        columns["id"] = pa.array([item.id for item in items], pa.string())
    batch = pa.record_batch(columns)
    metadata = {LABEL: label, "content_type": content_type, "schema_version": str(SCHEMA_VERSION)}
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, batch.schema.with_metadata(metadata)) as writer:
        writer.write_batch(batch.replace_schema_metadata(metadata))
    headers = {CONTENT_TYPE: CLASS_BATCH_ARROW.encode(), **_VERSION}
    return Message(sink.getvalue().to_pybytes(), key=label.encode(), headers=headers)


def _check_items(items: Sequence[Item]) -> None:
    if not items:
        raise ValueError("items is empty: a class batch needs at least one sample")
