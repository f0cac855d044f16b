"""Image payloads to uint8 tensors, within limits that are checked before anything is decoded."""

from __future__ import annotations

import io
import struct
import warnings
from zlib import crc32

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from cl_engine.errors import InputError

# Content type to Pillow's format name; only these decoders are ever reached.
IMAGE_FORMATS = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/bmp": "BMP",
    "image/gif": "GIF",
    "image/tiff": "TIFF",
}
DEFAULT_MAX_PIXELS = 64_000_000

# PNG (ISO/IEC 15948): the signature, and the first chunk, IHDR, with 13 bytes of content.
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
# IHDR's content begins with width and height. Between the contents of two chunks lie the CRC of the one, and
# the length and the name of the next.
_PNG_SIZE = struct.Struct(">II")
_PNG_BETWEEN = struct.Struct(">II4s")
_PNG_SIZE_AT, _PNG_IHDR_NAME_AT, _PNG_IHDR_END = 16, 12, 29
# A chunk's CRC is of its name and content; IEND has no content.
_PNG_END = b"IEND\xaeB`\x82"
# JPEG (ITU-T T.81, table B.1): start and end of the image, start of a scan, and the frames of the Huffman
# modes that everybody writes: baseline, extended, progressive.
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_JPEG_SCAN = 0xDA
_JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_JPEG_SEGMENT = struct.Struct(">BBH")
_JPEG_SIZE = struct.Struct(">HH")


def looks_whole(payload: bytes, content_type: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> bool:
    """Tell whether an image is whole as far as its structure shows, at a tenth of a decode's cost.

    True for a PNG whose chunks all have the right CRC, from IHDR over IDAT to IEND, and for a JPEG whose
    segments lead to a frame and a scan and whose last bytes end the image; in both within the size limit.
    Such a file is neither cut short nor mislabelled; only a decode can tell that the compressed pixels in
    it are in order. False says nothing against the payload: it may be another format, trailing bytes, or
    damage, and `open_image` tells which.

    Args:
        payload: the encoded file.
        content_type: its media type, in lower case and without parameters.
        max_pixels: largest width times height.
    """
    try:
        if content_type == "image/png":
            return _png_looks_whole(payload, max_pixels)
        if content_type == "image/jpeg":
            return _jpeg_looks_whole(payload, max_pixels)
    except struct.error:
        # Some length leads beyond the end of the payload.
        return False
    return False


def _png_looks_whole(payload: bytes, max_pixels: int) -> bool:
    if not payload.startswith(_PNG_START):
        return False
    width, height = _PNG_SIZE.unpack_from(payload, _PNG_SIZE_AT)
    view, name_at, end, pixels_seen = memoryview(payload), _PNG_IHDR_NAME_AT, _PNG_IHDR_END, False
    while True:
        crc, length, name = _PNG_BETWEEN.unpack_from(payload, end)
        if crc32(view[name_at:end]) != crc:
            return False
        name_at = end + 8
        if name == b"IDAT":
            pixels_seen = True
        elif name == b"IEND":
            return (
                pixels_seen
                and length == 0
                and 0 < width * height <= max_pixels
                and payload.startswith(_PNG_END, name_at)
            )
        end = name_at + 4 + length


def _jpeg_looks_whole(payload: bytes, max_pixels: int) -> bool:
    if not (payload.startswith(_JPEG_START) and payload.endswith(_JPEG_END)):
        return False
    at, pixels = len(_JPEG_START) - 1, 0
    while True:
        fill, marker, length = _JPEG_SEGMENT.unpack_from(payload, at)
        if fill != 0xFF:
            return False
        if marker == _JPEG_SCAN:
            return 0 < pixels <= max_pixels
        if marker in _JPEG_FRAMES:
            # After the segment's length and the sample precision.
            height, width = _JPEG_SIZE.unpack_from(payload, at + 5)
            pixels = width * height
        # A marker without a segment, or a length below its own two bytes, would not go forward.
        if marker < 0xC0 or length < 2:
            return False
        at += 2 + length


def open_image(payload: bytes, content_type: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decode an image payload completely, as RGB.

    Args:
        payload: the encoded file.
        content_type: its media type, one of `IMAGE_FORMATS`.
        max_pixels: largest width times height; read from the header, before any pixel is decoded.

    Raises:
        InputError: unsupported content type, not an image of that type, too large, or truncated.
    """
    media_type = content_type.split(";")[0].strip().lower()
    expected = IMAGE_FORMATS.get(media_type)
    if expected is None:
        raise InputError(
            f"content type {content_type!r} is not an image this stream takes: "
            f"use one of {', '.join(sorted(IMAGE_FORMATS))}"
        )
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb check warns and raises at limits of its own; ours is the one that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(payload), formats=[expected])
    except Image.DecompressionBombError as error:
        raise InputError(f"the image is larger than the limit of {max_pixels} pixels: {error}") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"the payload is not a {expected} image, as its content type says") from error
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(
            f"the image is {width} x {height} = {width * height} pixels, the limit is {max_pixels}: "
            "send a smaller one or raise limits.max_image_pixels"
        )
    try:
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"the {expected} image is truncated or damaged: {error}") from error


def square(image: Image.Image, size: int) -> Tensor:
    """Scale the shorter side to `size` and cut the centre square, as uint8 (3, size, size)."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    scaled = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).contiguous()
