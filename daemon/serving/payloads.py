"""Encoded inputs of a request, and what is known about them before they are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cl_engine.errors import InputError
from cl_engine.learners.base import Servable
from daemon.errors import BadRequest

# First bytes of a file to its content type; WebP has a length between its two marks.
_SIGNATURES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"BM", "image/bmp"),
    (b"GIF8", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)


class Payload(NamedTuple):
    """One encoded input."""

    data: bytes
    content_type: str


def sniff(data: bytes) -> str:
    """Return the content type of an image by its first bytes.

    Raises:
        BadRequest: the bytes begin like no image format that is accepted.
    """
    for signature, content_type in _SIGNATURES:
        if data.startswith(signature):
            return content_type
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise BadRequest(
        f"the payload ({len(data)} bytes) begins like no image format that is accepted: "
        "send JPEG, PNG, WebP, BMP, GIF or TIFF, or name its content type"
    )


def decode(servable: Servable, payloads: Sequence[Payload]) -> Tensor:
    """Decode a request's payloads to input rows (n, ...).

    Raises:
        InputError: a payload is not what its content type says, or breaks a limit; the message says
            which one.
    """
    rows = []
    for index, payload in enumerate(payloads):
        try:
            rows.append(servable.decode(payload.data, payload.content_type))
        except InputError as error:
            raise InputError(f"input {index}: {error}") from error
    return torch.stack(rows)
