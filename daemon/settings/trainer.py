"""The process that runs sessions."""

from __future__ import annotations

from pydantic import Field

from daemon.settings.section import Section


class TrainerSettings(Section):
    """The process that runs sessions."""

    threads: int | None = Field(default=None, ge=1)
    """CPU threads for training; empty: torch's choice."""
    niceness: int = Field(default=10, ge=0, le=19)
    """Scheduling niceness, so that serving goes first."""
    idle_seconds: float = Field(default=120.0, ge=0)
    """How long the process is kept for the next session; 0 ends it after each."""
    stall_seconds: float = Field(default=1800.0, gt=0)
    """A process that reports no progress for so long is ended and its session resumed; an epoch, or loading
    the backbone, must be faster."""
    max_attempts: int = Field(default=3, ge=1)
    """Crashes and stalls in a row after which a session is given up."""
