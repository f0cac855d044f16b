"""What a new generation must show."""

from __future__ import annotations

from pydantic import Field

from daemon.settings.section import Section


class GateSettings(Section):
    """What a new generation must show on the holdout before it goes live."""

    min_accuracy: float = Field(default=0.0, ge=0, le=1)
    """Least accuracy over all classes (A_T)."""
    max_accuracy_drop: float = Field(default=0.05, ge=0, le=1)
    """Most that the accuracy on the classes of the live generation may fall, measured on their holdout."""
    max_forgetting: float = Field(default=0.1, ge=0, le=1)
    """Most forgetting (mean over earlier sessions of best minus present accuracy)."""
