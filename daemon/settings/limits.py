"""Bounds on what one message may hold."""

from __future__ import annotations

from pydantic import Field

from daemon.settings.section import Section


class LimitSettings(Section):
    """Bounds on what one message may hold; beyond them it is a dead letter."""

    max_message_bytes: int = Field(default=32 * 2**20, ge=1024)
    """Largest message."""
    max_image_pixels: int = Field(default=64_000_000, ge=1)
    """Largest image, width times height, checked before it is decoded."""
    max_text_bytes: int = Field(default=64 * 2**10, ge=1)
    """Longest text, in bytes of UTF-8; the encoder reads its first `backbone.max_tokens` tokens."""
    max_label_length: int = Field(default=128, ge=1, le=1024)
    """Longest label, in characters."""
    max_samples_per_message: int = Field(default=10_000, ge=1)
    """Most samples in one class batch."""
