"""Every setting of one daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from daemon.settings.backbone import BackboneSettings
from daemon.settings.limits import LimitSettings
from daemon.settings.log import LogSettings
from daemon.settings.retention import RetentionSettings
from daemon.settings.secrets import secrets_directory
from daemon.settings.serving import ServingSettings
from daemon.settings.streams import StreamSettings
from daemon.settings.trainer import TrainerSettings

# The V2 protocol puts the stream's name into URLs, Kafka puts it into topic names.
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class Settings(BaseSettings):
    """Settings of one daemon."""

    model_config = SettingsConfigDict(
        env_prefix="ACCRETE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        secrets_dir=None,
    )

    state_directory: Path = Path("accrete-state")
    """Everything durable: state.db, topics.db, generations, checkpoints."""
    streams: dict[Annotated[str, Field(pattern=NAME_PATTERN)], StreamSettings] = Field(
        default_factory=lambda: {"default": StreamSettings()}, min_length=1
    )
    """The streams by name; the name is also the model name that clients ask for."""
    backbone: BackboneSettings = BackboneSettings()
    """The frozen network."""
    limits: LimitSettings = LimitSettings()
    """Bounds on messages."""
    serving: ServingSettings = ServingSettings()
    """The HTTP service."""
    retention: RetentionSettings = RetentionSettings()
    """How long ids are remembered."""
    trainer: TrainerSettings = TrainerSettings()
    """The training process."""
    log: LogSettings = LogSettings()
    """Logging."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment and secrets win over the file, which arrives as init arguments."""
        del settings_cls, dotenv_settings
        secrets = NestedSecretsSettingsSource(
            file_secret_settings, secrets_dir=secrets_directory(), secrets_dir_missing="ok"
        )
        return env_settings, secrets, init_settings
