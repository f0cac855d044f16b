"""Messages of every format, written by hand from the documentation and not by our own encoder."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image
from pyarrow import ipc


def picture(name: str) -> bytes:
    """Encode an image of the name's own colour; a PNG's first bytes hold a line break and are no UTF-8."""
    red, green, blue, *_ = hashlib.sha256(name.encode()).digest()
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (red, green, blue)).save(buffer, "PNG")
    return buffer.getvalue()


def ascii_picture(name: str) -> bytes:
    """Encode a bitmap of the name's own colour that is one line of ASCII, so that it passes for text.

    Of the header's numbers no byte is above 127 or a line's end: side 16, 768 bytes of pixels, 822 in all.
    """
    side = 16
    colour = bytes(32 + value % 95 for value in hashlib.sha256(name.encode()).digest()[:3])
    pixels = colour * side * side
    sizes = (54 + len(pixels), 0, 0, 54, 40, side, side, 1, 24, 0, len(pixels), 0, 0, 0, 0)
    return struct.pack("<2sIHHIIiiHHIIiiII", b"BM", *sizes) + pixels


@dataclass(frozen=True)
class Sent:
    """A message, written by hand from the documented format, and the samples that must come of it.

    Attributes:
        value, headers: the message.
        samples: payload by sample id.
        content_type: of the samples.
    """

    value: bytes | None
    headers: Mapping[str, bytes]
    samples: Mapping[str, bytes]
    content_type: str = "image/png"


def raw_image(label: str, name: str) -> Sent:
    """Send an image as it is, with headers."""
    payload = picture(name)
    headers = {"label": label.encode(), "content-type": b"image/png", "id": name.encode()}
    return Sent(payload, headers, {name: payload})


def raw_ascii_image(label: str, name: str) -> Sent:
    """Send an image all of whose bytes are a line of ASCII."""
    payload = ascii_picture(name)
    headers = {"label": label.encode(), "content-type": b"image/bmp", "id": name.encode()}
    return Sent(payload, headers, {name: payload}, "image/bmp")


def _event_attributes(label: str, name: str) -> dict[str, str]:
    """Return a CloudEvent's attributes."""
    return {
        "specversion": "1.0",
        "id": name,
        "source": "urn:camera:7",
        "type": "accrete.sample.labelled.v1",
        "label": label,
    }


def _binary_event(label: str, name: str, payload: bytes, content_type: str) -> Sent:
    """Put the attributes into headers, the payload as it is."""
    headers = {f"ce_{k}": v.encode() for k, v in _event_attributes(label, name).items()}
    headers["content-type"] = content_type.encode()
    return Sent(payload, headers, {f"urn:camera:7 {name}": payload}, content_type)


def binary_event_image(label: str, name: str) -> Sent:
    """Wrap an image in a CloudEvent in binary mode."""
    return _binary_event(label, name, picture(name), "image/png")


def binary_event_ascii_image(label: str, name: str) -> Sent:
    """Wrap an image of ASCII in a CloudEvent in binary mode."""
    return _binary_event(label, name, ascii_picture(name), "image/bmp")


def structured_event(label: str, name: str) -> Sent:
    """Write one JSON object with the payload in base64."""
    payload = picture(name)
    event = _event_attributes(label, name) | {
        "datacontenttype": "image/png",
        "data_base64": base64.b64encode(payload).decode(),
    }
    headers = {"content-type": b"application/cloudevents+json; charset=UTF-8"}
    return Sent(json.dumps(event).encode(), headers, {f"urn:camera:7 {name}": payload})


def json_batch(label: str, name: str) -> Sent:
    """Write three samples of a class as JSON."""
    samples = {f"{name}-{n}": picture(f"{name}-{n}") for n in range(3)}
    batch = {
        "schema_version": 1,
        "label": label,
        "content_type": "image/png",
        "samples": [{"id": i, "data": base64.b64encode(p).decode()} for i, p in samples.items()],
    }
    headers = {"content-type": b"application/vnd.accrete.class-batch+json"}
    return Sent(json.dumps(batch).encode(), headers, samples)


def arrow_batch(label: str, name: str) -> Sent:
    """Write three samples of a class as an Arrow IPC stream, with Arrow's own library."""
    samples = {f"{name}-{n}": picture(f"{name}-{n}") for n in range(3)}
    table = pa.table({"id": list(samples), "data": pa.array(samples.values(), pa.binary())})
    table = table.replace_schema_metadata(
        {"label": label, "content_type": "image/png", "schema_version": "1"}
    )
    sink = io.BytesIO()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return Sent(sink.getvalue(), {"content-type": b"application/vnd.apache.arrow.stream"}, samples)


FORMATS: Mapping[str, Callable[[str, str], Sent]] = {
    "raw image": raw_image,
    "raw image of ASCII": raw_ascii_image,
    "CloudEvent binary image": binary_event_image,
    "CloudEvent binary image of ASCII": binary_event_ascii_image,
    "CloudEvent structured": structured_event,
    "JSON class batch": json_batch,
    "Arrow class batch": arrow_batch,
}
