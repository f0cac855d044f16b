"""What the formats' readers hand to the checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from daemon.errors import DeadLetter


class Candidate(NamedTuple):
    """One sample as its message has it, not checked yet; a tuple, for there is one for each sample."""

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
