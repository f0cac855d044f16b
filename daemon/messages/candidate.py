"""What the formats' readers hand to the checks."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.errors import DeadLetter


@dataclass(frozen=True)
class Candidate:
    """One sample as its message has it, not checked yet."""

    label: str | None
    content_type: str | None
    id: str | None
    payload: bytes


@dataclass(frozen=True)
class Unreadable:
    """One sample of a class batch that cannot be taken out of it.

    Attributes:
        error: what is wrong with it.
        original: a class batch in the same format with this sample alone.
    """

    error: DeadLetter
    original: bytes
