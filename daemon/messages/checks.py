"""What a label, an id, a content type and a payload must be; pure functions."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from cl_engine.errors import InputError
from cl_engine.images import IMAGE_FORMATS, looks_whole, open_image
from daemon.errors import DeadLetter, DeadLetterReason
from daemon.messages.formats import TEXT, media_type

MAX_ID_LENGTH = 512
# Every type that some backbone decodes.
PAYLOAD_TYPES = frozenset({*IMAGE_FORMATS, TEXT})
# Control characters, halves of surrogate pairs, line and paragraph separators: nothing a person can read.
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
# Longer texts are not remembered, so that the memory is bounded.
_USUAL_LENGTH = 128
# Long enough to recognise a value in a log line, short enough for a header.
_SHOWN = 40


def shown(value: str) -> str:
    """Quote a value for a message: escaped, and cut if it is long."""
    return repr(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!r}... ({len(value)} characters)"


def checked_label(label: str | None, max_length: int) -> str:
    """Return the label without surrounding space, in Unicode's composed form (NFC).

    Raises:
        DeadLetter: missing, empty, too long, or with characters a person cannot read.
    """
    if label is None:
        raise DeadLetter(DeadLetterReason.BAD_LABEL, "the label is missing: name the class of the sample")
    return _checked_label(label, max_length) if len(label) > max_length else _usual_label(label, max_length)


def _checked_label(label: str, max_length: int) -> str:
    text = unicodedata.normalize("NFC", label).strip()
    if not text:
        raise DeadLetter(DeadLetterReason.BAD_LABEL, "the label is empty: name the class of the sample")
    if len(text) > max_length:
        raise DeadLetter(
            DeadLetterReason.BAD_LABEL,
            f"the label has {len(text)} characters, the limit is {max_length}: "
            "shorten it or raise limits.max_label_length",
        )
    bad = _unprintable(text)
    if bad is not None:
        raise DeadLetter(
            DeadLetterReason.BAD_LABEL,
            f"the label {shown(text)} has the control character {bad!a}: remove it",
        )
    return text


# A stream has few labels and many samples; the longer ones are left out so that the memory is bounded.
_usual_label = lru_cache(maxsize=1024)(_checked_label)


# From 2,048 bytes on hashlib lets other threads run while it hashes, and getting one's turn back costs more
# than hashing a small image: at 1 GB/s 16 KiB take 16 us.
_HELD_BYTES = 2047
_HASHED_AT_ONCE = 16 << 10


def checked_id(sample_id: str | None, label: str, payload: bytes) -> str:
    """Return the sample's id; the SHA-256 of label and payload if the producer gave none.

    Raises:
        DeadLetter: empty, too long, or with control characters.
    """
    if sample_id is None:
        # A label has no NUL, so label and payload cannot run into each other.
        digest = hashlib.sha256(label.encode() + b"\0")
        if len(payload) > _HASHED_AT_ONCE:
            digest.update(payload)
        else:
            view = memoryview(payload)
            for start in range(0, len(view), _HELD_BYTES):
                digest.update(view[start : start + _HELD_BYTES])
        return digest.hexdigest()
    if not sample_id.strip() or len(sample_id) > MAX_ID_LENGTH or _unprintable(sample_id) is not None:
        raise DeadLetter(
            DeadLetterReason.BAD_ENVELOPE,
            f"the sample id {shown(sample_id)} must have 1 to {MAX_ID_LENGTH} characters "
            "and no control characters: fix it, or leave it out",
        )
    return sample_id


def checked_content_type(
    content_type: str | None, default: str | None, accepted: frozenset[str] = PAYLOAD_TYPES
) -> str:
    """Return the media type of a payload that a stream can take.

    Args:
        content_type: as the message has it.
        default: for messages that have none.
        accepted: media types that the stream's backbone can decode.

    Raises:
        DeadLetter: missing without a default, of no accepted type, or a text that is not UTF-8.
    """
    if content_type is not None and len(content_type) > _USUAL_LENGTH:
        return _checked_content_type(content_type, default, accepted)
    return _usual_content_type(content_type, default, accepted)


def _checked_content_type(content_type: str | None, default: str | None, accepted: frozenset[str]) -> str:
    given = content_type if content_type and content_type.strip() else default
    if given is None:
        raise DeadLetter(
            DeadLetterReason.BAD_CONTENT_TYPE,
            "the content type is missing: send it, or set default_content_type of the stream",
        )
    kind = media_type(given)
    if kind not in accepted:
        raise DeadLetter(
            DeadLetterReason.BAD_CONTENT_TYPE,
            f"the content type {shown(given)} is none that this stream takes: use one of "
            f"{', '.join(sorted(accepted))}",
        )
    charset = _charset(given)
    if kind == TEXT and charset not in {"", "utf-8", "utf8", "us-ascii"}:
        raise DeadLetter(
            DeadLetterReason.BAD_CONTENT_TYPE, f"the text's charset is {shown(charset)}: send UTF-8"
        )
    return kind


# A stream has few content types and many samples.
_usual_content_type = lru_cache(maxsize=256)(_checked_content_type)


def check_payload(payload: bytes, content_type: str, max_pixels: int, max_text_bytes: int) -> None:
    """Check what a payload shows without decoding it; decode it only if that leaves a doubt.

    A PNG or JPEG that is whole by its structure passes: decoding each one would take most of intake's time,
    and the session that reads it decodes it anyway (`check_decodes`). Any other image is decoded.

    Raises:
        DeadLetter: not what its content type says, damaged, empty or too large.
    """
    if not payload:
        raise DeadLetter(DeadLetterReason.BAD_PAYLOAD, "the payload is empty: send the sample's bytes")
    if content_type == TEXT:
        _check_text(payload, max_text_bytes)
    elif not looks_whole(payload, content_type, max_pixels):
        check_decodes(payload, content_type, max_pixels)


def check_decodes(payload: bytes, content_type: str, max_pixels: int) -> None:
    """Decode an image completely.

    Raises:
        DeadLetter: not what its content type says, damaged or too large.
    """
    try:
        open_image(payload, content_type, max_pixels)
    except InputError as error:
        raise DeadLetter(DeadLetterReason.BAD_PAYLOAD, str(error)) from error
    except MemoryError:
        # That is about this machine now, not about the payload for ever.
        raise
    except Exception as error:
        # Decoders meet hostile bytes with almost any exception; one image must not stop the stream.
        raise DeadLetter(
            DeadLetterReason.BAD_PAYLOAD, f"the image is damaged: {type(error).__name__}: {error}"
        ) from error


def check_critical(names: Iterable[str], understood: frozenset[str]) -> None:
    """Refuse a message whose producer demands understanding of what this release does not know.

    Raises:
        DeadLetter: a name of `names` is not in `understood`.
    """
    unknown = sorted({name.strip() for name in names} - understood - {""})
    if unknown:
        raise DeadLetter(
            DeadLetterReason.UNKNOWN_SCHEMA,
            f"the message requires {', '.join(shown(name) for name in unknown)} to be understood, "
            f"this release knows {', '.join(sorted(understood))}: update the daemon or send without it",
        )


def _check_text(payload: bytes, max_bytes: int) -> None:
    if len(payload) > max_bytes:
        raise DeadLetter(
            DeadLetterReason.TOO_LARGE,
            f"the text has {len(payload)} bytes, the limit is {max_bytes}: send a part of it or raise "
            "limits.max_text_bytes",
        )
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DeadLetter(
            DeadLetterReason.BAD_PAYLOAD, f"the text is not UTF-8 (byte {error.start}): send UTF-8"
        ) from error
    if not text.strip():
        raise DeadLetter(DeadLetterReason.BAD_PAYLOAD, "the text is empty: send some words")


def _charset(content_type: str) -> str:
    if ";" not in content_type:
        return ""
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"').lower()
    return ""


def _unprintable(text: str) -> str | None:
    if text.isprintable():
        # Stricter than ours, and one call for the text instead of one for each character.
        return None
    return next((c for c in text if unicodedata.category(c) in _UNPRINTABLE), None)
