"""When sessions start by themselves."""

from __future__ import annotations

from pydantic import Field, model_validator

from daemon.settings.section import Section


class TriggerSettings(Section):
    """When a session starts by itself: new classes with enough samples, and quiet or waited for."""

    min_samples_per_class: int = Field(default=20, ge=2)
    """Training samples a new class needs before it can be learnt."""
    quiet_seconds: float = Field(default=10.0, ge=0)
    """Start once no sample of a new class has arrived for so long."""
    max_wait_seconds: float = Field(default=300.0, gt=0)
    """Start at the latest so long after the first sample of a new class that has enough by now."""
    max_new_classes: int = Field(default=50, ge=1)
    """Start without waiting for quiet once so many classes are ready."""

    @model_validator(mode="after")
    def _wait_is_longer(self) -> TriggerSettings:
        if self.max_wait_seconds < self.quiet_seconds:
            raise ValueError("max_wait_seconds must not be below quiet_seconds: quiet would never be seen")
        return self
