"""Image payloads to uint8 tensors, within limits that are checked before anything is decoded."""

from __future__ import annotations

import io
import warnings

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
