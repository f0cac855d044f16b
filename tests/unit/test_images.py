"""Image payloads: what is decoded, and what is refused before it costs anything."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cl_engine.errors import InputError
from cl_engine.images import IMAGE_FORMATS, looks_whole, open_image, square


def encoded(image: Image.Image, kind: str) -> bytes:
    """Encode an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def gradient(width: int = 24, height: int = 16) -> Image.Image:
    """Draw an image whose pixels all differ."""
    image = Image.new("RGB", (width, height))
    image.putdata([(x * 10 % 256, y * 15 % 256, (x + y) % 256) for y in range(height) for x in range(width)])
    return image


def png_of(width: int, height: int) -> bytes:
    """Write a PNG's header, claiming a size, and next to no data."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 64)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("media_type", "kind"), IMAGE_FORMATS.items())
def test_each_format_is_decoded_as_rgb(media_type: str, kind: str) -> None:
    """Whatever the parameters and the case of its content type."""
    payload = encoded(gradient().convert("P" if kind == "GIF" else "RGB"), kind)
    image = open_image(payload, f"{media_type.upper()}; q=1")
    assert (image.mode, image.size) == ("RGB", (24, 16))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_grey_palette_and_transparent_images_become_rgb(mode: str) -> None:
    """A backbone takes three channels."""
    assert open_image(encoded(gradient().convert(mode), "PNG"), "image/png").mode == "RGB"


@pytest.mark.parametrize("side", [8_001, 12_000, 50_000])
def test_an_image_bomb_costs_nothing(side: int) -> None:
    """A header that claims up to 7.5 GB of pixels is refused before any is decoded."""
    payload = png_of(side, side)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="64000000"):
            open_image(payload, "image/png")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_is_inclusive() -> None:
    """24 x 16 = 384 pixels pass a limit of 384 and break one of 383."""
    payload = encoded(gradient(), "PNG")
    assert open_image(payload, "image/png", 384).size == (24, 16)
    with pytest.raises(InputError, match=r"24 x 16 = 384 pixels, the limit is 383"):
        open_image(payload, "image/png", 383)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_truncated_image_is_refused(kind: str) -> None:
    """Half a file is no picture of half the things; it is an input error."""
    payload = encoded(gradient(96, 96), kind)
    with pytest.raises(InputError):
        open_image(payload[: len(payload) // 2], f"image/{kind.lower()}")


@pytest.mark.parametrize("payload", [b"", b"hello", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(payload: bytes) -> None:
    """Empty, text, or a signature alone."""
    for media_type in IMAGE_FORMATS:
        with pytest.raises(InputError):
            open_image(payload, media_type)


def test_the_content_type_must_be_right() -> None:
    """A PNG called a JPEG is refused, and so is what is no image type; both say what to do."""
    payload = encoded(gradient(), "PNG")
    with pytest.raises(InputError, match="not a JPEG image, as its content type says"):
        open_image(payload, "image/jpeg")
    with pytest.raises(InputError, match="use one of image/bmp"):
        open_image(payload, "image/svg+xml")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(IMAGE_FORMATS)),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_is_an_input_error_or_a_picture(media_type: str, damage: list[tuple[int, int]]) -> None:
    """Whatever bytes are overwritten, no decoder error of another kind comes through."""
    payload = bytearray(encoded(gradient(), IMAGE_FORMATS[media_type]))
    for place, value in damage:
        payload[place % len(payload)] = value
    try:
        image = open_image(bytes(payload), media_type, 1_000_000)
    except InputError:
        return
    assert image.mode == "RGB"


def test_the_centre_square_is_cut_out() -> None:
    """A wide image whose middle third is red becomes all red."""
    image = Image.new("RGB", (90, 30), (0, 0, 255))
    image.paste((255, 0, 0), (30, 0, 60, 30))
    result = square(image, 14)
    assert (result.dtype, tuple(result.shape)) == (torch.uint8, (3, 14, 14))
    assert result[0, :, 1:-1].min() > 200
    assert result[2, :, 1:-1].max() < 55


WHOLE = {
    "image/png": encoded(gradient(), "PNG"),
    "image/jpeg": encoded(gradient(), "JPEG"),
}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_of_any_mode_looks_whole(mode: str) -> None:
    """Palette and transparency have chunks of their own."""
    assert looks_whole(encoded(gradient().convert(mode), "PNG"), "image/png")


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"quality": 100}, {"exif": b"Exif\0\0" + bytes(99)}]
)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_of_the_usual_kinds_looks_whole(mode: str, options: dict[str, object]) -> None:
    """Baseline and progressive, with and without metadata."""
    buffer = io.BytesIO()
    gradient().convert(mode).save(buffer, "JPEG", **options)
    assert looks_whole(buffer.getvalue(), "image/jpeg")


@pytest.mark.parametrize("media_type", WHOLE)
@given(data=st.data())
def test_an_image_cut_short_does_not_look_whole(media_type: str, data: st.DataObject) -> None:
    """Wherever it is cut."""
    payload = WHOLE[media_type]
    assert not looks_whole(payload[: data.draw(st.integers(0, len(payload) - 1))], media_type)


@given(at=st.integers(8, len(WHOLE["image/png"]) - 1), change=st.integers(1, 255))
def test_a_png_with_any_byte_changed_does_not_look_whole(at: int, change: int) -> None:
    """Every byte after the signature is under some CRC, or is one, or a length that leads to one."""
    payload = bytearray(WHOLE["image/png"])
    payload[at] ^= change
    assert not looks_whole(bytes(payload), "image/png")


@given(st.binary(max_size=200), st.sampled_from(sorted(WHOLE)), st.integers(0, 60))
def test_any_bytes_are_looked_at_without_an_error(tail: bytes, media_type: str, head: int) -> None:
    """Whatever lengths they claim."""
    assert not looks_whole(WHOLE[media_type][:head] + tail[:-1] + b"\0", media_type)


def test_size_and_type_count_before_anything_is_decoded() -> None:
    """A bomb, a mislabelled image and a format without such a look all go to the decoder."""
    assert not looks_whole(png_of(50_000, 50_000), "image/png")
    assert not looks_whole(WHOLE["image/png"], "image/png", max_pixels=24 * 16 - 1)
    assert not looks_whole(WHOLE["image/jpeg"], "image/jpeg", max_pixels=24 * 16 - 1)
    assert looks_whole(WHOLE["image/jpeg"], "image/jpeg", max_pixels=24 * 16)
    assert not looks_whole(WHOLE["image/png"], "image/jpeg")
    assert not looks_whole(encoded(gradient(), "WEBP"), "image/webp")
