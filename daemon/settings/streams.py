"""One stream: where it comes from and how it is learnt."""

from __future__ import annotations

from pydantic import Field, model_validator

from daemon.settings.gate import GateSettings
from daemon.settings.kafka import KafkaSource
from daemon.settings.learner import LearnerSettings
from daemon.settings.section import Section
from daemon.settings.sources import EmbeddedSource, SourceSettings
from daemon.settings.topics import ControlTopicSettings, EventSettings, RequestTopicSettings
from daemon.settings.trigger import TriggerSettings


class StreamSettings(Section):
    """One stream: where it comes from and how it is learnt."""

    source: SourceSettings = EmbeddedSource()
    """Where messages come from."""
    learner: LearnerSettings = LearnerSettings()
    """The method."""
    trigger: TriggerSettings = TriggerSettings()
    """When sessions start."""
    gate: GateSettings = GateSettings()
    """What a generation must show."""
    events: EventSettings = EventSettings()
    """Where the stream's events go."""
    control: ControlTopicSettings = ControlTopicSettings()
    """Commands from a topic."""
    requests: RequestTopicSettings = RequestTopicSettings()
    """Requests from a topic."""
    keep_generations: int = Field(default=10, ge=1)
    """Newest generations kept on disk for a rollback; older ones that are neither live nor in memory are
    deleted."""
    holdout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of each class's samples never trained on, chosen by a hash of the sample id."""
    holdout_limit_per_class: int = Field(default=200, ge=1)
    """Most holdout samples per class that an evaluation looks at."""
    default_content_type: str | None = None
    """Content type of messages without that header; such messages are dead letters if empty."""

    @model_validator(mode="after")
    def _transactions_are_kafkas(self) -> StreamSettings:
        if not isinstance(self.source, KafkaSource):
            for name, section in (("events", self.events), ("requests", self.requests)):
                if section.transactions:
                    raise ValueError(
                        f"{name}.transactions is true, but source.kind is {self.source.kind}: only Kafka has "
                        f"transactions; set {name}.transactions to false (the embedded log knows a repeated "
                        "message by its idempotency key), or source.kind to kafka"
                    )
        return self
