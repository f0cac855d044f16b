"""The JSON formats as pydantic models; their JSON Schemas are generated from here."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema


def _decode(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be a string in base64")  # noqa: TRY004 - pydantic takes only ValueError
    try:
        return binascii.a2b_base64(value, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"is not base64 of the standard alphabet (RFC 4648 section 4): {error}") from error


Base64 = Annotated[
    bytes,
    BeforeValidator(_decode),
    PlainSerializer(lambda value: base64.b64encode(value).decode("ascii"), return_type=str),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]


class Format(BaseModel):
    """Unknown fields are ignored, so that producers may be newer than the daemon."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)


class ClassBatchSample(Format):
    """One sample of a class batch."""

    data: Base64
    """The encoded payload (a JPEG file, a text), in base64."""
    id: str | None = None
    """Unique within the stream; SHA-256 of label and payload if absent, so that resending adds nothing."""


class ClassBatchEnvelope(Format):
    """A class batch whose samples are not looked at yet: a bad one must not spoil the others."""

    schema_version: Literal[1]
    """Version of this format."""
    label: str
    """The class of every sample."""
    content_type: str | None = None
    """Media type of every payload; the stream's default if absent."""
    critical: list[str] = Field(default_factory=list)
    """Fields that the reader must understand; it refuses the message if it does not know one."""
    samples: list[Any] = Field(min_length=1)
    """The samples."""


class ClassBatch(ClassBatchEnvelope):
    """Several samples of one class in one message."""

    samples: list[ClassBatchSample] = Field(min_length=1)
    """The samples."""


class CloudEvent(Format):
    """A CloudEvents 1.0 event with one labelled sample, in structured mode."""

    specversion: str
    """Version of CloudEvents: 1.0."""
    id: str = Field(min_length=1)
    """Together with the source, the sample's id."""
    source: str = Field(min_length=1)
    """Where the event comes from, a URI reference."""
    type: str = Field(min_length=1)
    """Type of the event; any is taken."""
    label: str
    """Extension attribute: the sample's class."""
    datacontenttype: str | None = None
    """Media type of the payload; the stream's default if absent."""
    critical: str = ""
    """Extension attribute: comma-separated attributes that the reader must understand."""
    data: str | None = None
    """A text payload."""
    data_base64: Base64 | None = None
    """A binary payload, in base64."""
