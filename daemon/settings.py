"""Every setting of the daemon, in one place; nothing else reads the environment.

Order of precedence: command line, environment (`ACCRETE_STATE_DIRECTORY`, nested with `__`),
secret files, the configuration file, defaults.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from daemon.errors import ConfigError

# Fields whose values are never shown, not even when they are wrong.
SECRET = re.compile(r"token|password|secret")
# The V2 protocol puts the stream's name into URLs, Kafka puts it into topic names.
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class Section(BaseModel):
    """A group of settings: unknown keys are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class EmbeddedSource(Section):
    """The topic log in the state directory: no server, the same offsets and semantics."""

    kind: Literal["embedded"] = "embedded"
    topic: str | None = None
    """Topic to consume; the stream's name if empty."""


class FolderSource(Section):
    """A watched directory with one sub-directory per class."""

    kind: Literal["folder"] = "folder"
    path: Path
    """Directory to watch; each sub-directory's name is a label."""
    scan_seconds: float = Field(default=2.0, gt=0)
    """How often the directory is looked at."""
    settle_seconds: float = Field(default=1.0, ge=0)
    """A file younger than this may still be being written and is left for a later scan."""


class KafkaSecurity(Section):
    """How to reach a secured cluster."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Kafka's security protocol."""
    ca_file: Path | None = None
    """PEM file with the certificate authority that signed the brokers' certificates; empty: the system's."""
    certificate_file: Path | None = None
    """PEM file with the client certificate, for mutual TLS."""
    key_file: Path | None = None
    """PEM file with the client certificate's private key."""
    key_password: SecretStr | None = None
    """Password of the private key."""
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    """SASL mechanism; required with a SASL protocol."""
    username: str | None = None
    """SASL user, for PLAIN and SCRAM."""
    password: SecretStr | None = None
    """SASL password, for PLAIN and SCRAM."""
    password_file: Path | None = None
    """File with the SASL password, instead of `password`; read at the start."""
    token_file: Path | None = None
    """File with the bearer token, for OAUTHBEARER; read again at each connection, so it may be renewed."""

    @model_validator(mode="after")
    def _complete(self) -> KafkaSecurity:
        if self.protocol.startswith("SASL") != (self.mechanism is not None):
            raise ValueError(f"protocol {self.protocol} does not go with mechanism {self.mechanism}")
        if self.mechanism == "OAUTHBEARER":
            if self.token_file is None:
                raise ValueError("mechanism OAUTHBEARER needs token_file")
        elif self.mechanism is not None:
            if self.username is None:
                raise ValueError(f"mechanism {self.mechanism} needs username")
            if (self.password is None) == (self.password_file is None):
                raise ValueError(f"mechanism {self.mechanism} needs either password or password_file")
        if self.key_file is not None and self.certificate_file is None:
            raise ValueError("key_file without certificate_file: set both for mutual TLS")
        return self


class KafkaSource(Section):
    """A topic of an Apache Kafka cluster."""

    kind: Literal["kafka"] = "kafka"
    bootstrap_servers: list[str] = Field(min_length=1)
    """Brokers as host:port."""
    topic: str
    """Topic to consume."""
    group_id: str = "accrete"
    """Consumer group; one per deployment."""
    group_instance_id: str | None = None
    """Makes the daemon a static member: a restart within the session timeout moves no partition."""
    client_id: str = "accrete"
    """Name the brokers log for this client."""
    assignor: Literal["cooperative-sticky", "range", "roundrobin"] = "cooperative-sticky"
    """How the group divides partitions; `cooperative-sticky` takes away only those that must move."""
    isolation_level: Literal["read_committed", "read_uncommitted"] = "read_committed"
    """Whether records of aborted and unfinished transactions are left out."""
    session_timeout_seconds: float = Field(default=45.0, gt=0)
    """The group expels a member that is silent for so long."""
    heartbeat_seconds: float = Field(default=3.0, gt=0)
    """How often the member reports; at most a third of the session timeout."""
    max_poll_interval_seconds: float = Field(default=300.0, gt=1.0)
    """The group expels a member that does not poll for so long; the daemon polls every second."""
    on_gap: Literal["refuse", "skip"] = "refuse"
    """What to do when stored offsets have left the log: stop, or go on at its start and say so."""
    connect_timeout_seconds: float = Field(default=10.0, gt=0)
    """How long a start waits for the first broker to answer."""
    request_timeout_seconds: float = Field(default=30.0, gt=0.5, le=500)
    """How long a broker may take to answer before its connection is given up."""
    unreachable_seconds: float = Field(default=10.0, gt=1.0)
    """The source counts as down once no broker has answered for so long."""
    stall_seconds: float = Field(default=60.0, gt=0)
    """An assigned, unpaused partition with lag counts as stalled after so long without a record."""
    queue_records: int = Field(default=2000, ge=1)
    """Records fetched ahead of intake; beyond them the partitions are paused."""
    queue_bytes: int = Field(default=64 * 2**20, ge=1024)
    """Bytes fetched ahead of intake; beyond them the partitions are paused."""
    fetch_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Most bytes that a broker returns at once, one larger message excepted."""
    partition_fetch_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Most bytes of one partition that a broker returns at once, one larger message excepted."""
    compression: Literal["none", "gzip", "lz4", "zstd"] = "lz4"
    """Compression of produced messages."""
    linger_seconds: float = Field(default=0.005, ge=0)
    """How long a produced message waits for others to share its batch."""
    batch_bytes: int = Field(default=2**18, ge=1024)
    """Largest produced batch, one larger message excepted."""
    max_message_bytes: int = Field(default=64 * 2**20, ge=1024)
    """Largest message produced; the topic's own `max.message.bytes` must allow it too."""
    delivery_timeout_seconds: float = Field(default=30.0, gt=1.0)
    """How long a produced message may take to be confirmed by all in-sync replicas."""
    security: KafkaSecurity = KafkaSecurity()
    """TLS and SASL."""

    @model_validator(mode="after")
    def _times_fit(self) -> KafkaSource:
        if self.heartbeat_seconds * 3 > self.session_timeout_seconds:
            raise ValueError(
                f"heartbeat_seconds {self.heartbeat_seconds} is over a third of session_timeout_seconds "
                f"{self.session_timeout_seconds}: one lost heartbeat would cost the membership"
            )
        if self.linger_seconds >= self.delivery_timeout_seconds:
            raise ValueError("linger_seconds must be below delivery_timeout_seconds")
        return self


SourceSettings = Annotated[EmbeddedSource | FolderSource | KafkaSource, Field(discriminator="kind")]


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


class GateSettings(Section):
    """What a new generation must show on the holdout before it goes live."""

    min_accuracy: float = Field(default=0.0, ge=0, le=1)
    """Least accuracy over all classes (A_T)."""
    max_accuracy_drop: float = Field(default=0.05, ge=0, le=1)
    """Most that the accuracy on the classes of the live generation may fall, measured on their holdout."""
    max_forgetting: float = Field(default=0.1, ge=0, le=1)
    """Most forgetting (mean over earlier sessions of best minus present accuracy)."""


class LearnerSettings(Section):
    """Which method learns the stream."""

    method: Literal["sgds", "exssnet", "supsup", "ridge", "ranpac", "slda", "ncm", "finetune"] = "sgds"
    """`sgds`: semantic-guided dynamic sparsification; `exssnet`, `supsup`: supermask subnetworks; and the
    baselines, `ridge`: exact ridge head over frozen features, `ranpac`: the same over a random projection,
    `slda`: streaming linear discriminants, `ncm`: nearest class mean, and `finetune`: naive fine-tuning,
    which forgets."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The method's own settings, checked by the method; `accrete config show` lists them."""
    seed: int = Field(default=1993, ge=0)
    """Everything random derives from it."""


class EventSettings(Section):
    """Events of the stream (sessions, gates, swaps) as CloudEvents, for other systems to follow."""

    enabled: bool = True
    """Whether events are written; without, none is kept either."""
    topic: str | None = None
    """Topic they are written to; the labelled topic's name with `.events` if empty."""


class ControlTopicSettings(Section):
    """Commands to the stream from a topic.

    Whoever may write there commands the stream: restrict the topic by Kafka's ACLs, or set a secret, or both.
    """

    enabled: bool = False
    """Whether commands are read from the topic."""
    topic: str | None = None
    """Topic they are read from; the labelled topic's name with `.control` if empty."""
    secret: SecretStr | None = Field(default=None, min_length=16)
    """Secret of the commands' HMAC-SHA-256 signatures; empty: commands need no signature."""


class RequestTopicSettings(Section):
    """Inputs to classify from a topic, answered to another."""

    enabled: bool = False
    """Whether requests are read from the topic."""
    topic: str | None = None
    """Topic they are read from; the labelled topic's name with `.requests` if empty."""
    predictions_topic: str | None = None
    """Topic of the answers; the labelled topic's name with `.predictions` if empty."""
    at_once: int = Field(default=32, ge=1)
    """Requests of one partition that are queued together."""
    top: int = Field(default=5, ge=1, le=1000)
    """Classes named in each answer, best first."""


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
    holdout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of each class's samples never trained on, chosen by a hash of the sample id."""
    holdout_limit_per_class: int = Field(default=200, ge=1)
    """Most holdout samples per class that an evaluation looks at."""
    default_content_type: str | None = None
    """Content type of messages without that header; such messages are dead letters if empty."""


class BackboneSettings(Section):
    """The frozen network all streams share."""

    name: str = "vit_small_patch14_dinov2.lvd142m"
    """timm model name."""
    weights: Path | None = None
    """Local safetensors file; empty: the asset catalogue, then timm's hub."""
    image_size: int = Field(default=224, ge=28)
    """Side of the square input, pixels; a multiple of the patch size."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 where the processor or GPU computes with it natively."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads for serving; empty: torch's choice."""


class LimitSettings(Section):
    """Bounds on what one message may hold; beyond them it is a dead letter."""

    max_message_bytes: int = Field(default=32 * 2**20, ge=1024)
    """Largest message."""
    max_image_pixels: int = Field(default=64_000_000, ge=1)
    """Largest image, width times height, checked before it is decoded."""
    max_label_length: int = Field(default=128, ge=1, le=1024)
    """Longest label, in characters."""
    max_samples_per_message: int = Field(default=10_000, ge=1)
    """Most samples in one class batch."""


class ServingSettings(Section):
    """The HTTP service."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and writes it to the state directory."""
    max_batch_size: int = Field(default=16, ge=1)
    """Most requests computed together."""
    max_batch_delay_seconds: float = Field(default=0.002, ge=0)
    """Longest that a request waits for others to join its batch."""
    max_queue: int = Field(default=256, ge=1)
    """Inputs that may wait to be computed; a request beyond them is answered 503."""
    max_inputs_per_request: int = Field(default=64, ge=1)
    """Most inputs that one request may hold, so that small payloads cannot fill the memory decoded."""
    request_timeout_seconds: float = Field(default=30.0, gt=0)
    """A request that waits longer is answered 504."""
    drain_seconds: float = Field(default=5.0, ge=0)
    """At a stop: how long requests already taken may still run."""
    max_resident_generations: int = Field(default=2, ge=1)
    """Generations kept in memory, the live one included, so that a rollback loads nothing."""
    token: SecretStr | None = None
    """Bearer token of the control endpoints; empty: they answer only on a loopback address."""

    @model_validator(mode="after")
    def _control_is_guarded(self) -> ServingSettings:
        if self.token is None and self.host not in {"127.0.0.1", "::1", "localhost"}:
            raise ValueError(
                f"host {self.host} is reachable from elsewhere: set serving.token "
                "(ACCRETE_SERVING__TOKEN, or a file in the secrets directory) for the control endpoints"
            )
        return self


class TrainerSettings(Section):
    """The process that runs sessions."""

    threads: int | None = Field(default=None, ge=1)
    """CPU threads for training; empty: torch's choice."""
    niceness: int = Field(default=10, ge=0, le=19)
    """Scheduling niceness, so that serving goes first."""
    idle_seconds: float = Field(default=120.0, ge=0)
    """How long the process is kept for the next session; 0 ends it after each."""
    max_attempts: int = Field(default=3, ge=1)
    """Crashes in a row after which a session is given up."""


class LogSettings(Section):
    """Logging to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level shown."""
    format: Literal["auto", "json", "console"] = "auto"
    """`auto`: console on a terminal, JSON otherwise."""


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


def secrets_directory() -> Path | None:
    """Return where secret files lie (`accrete_serving__token` and the like), if anywhere.

    `ACCRETE_SECRETS_DIRECTORY` names the directory; without it systemd's `LoadCredential=` does.
    """
    named = os.environ.get("ACCRETE_SECRETS_DIRECTORY") or os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(named) if named else None


def load_settings(path: Path | None = None, overrides: dict[str, Any] | None = None) -> Settings:
    """Load and check the settings.

    Args:
        path: YAML file; None for defaults and environment alone.
        overrides: top-level values that win over the file.

    Raises:
        ConfigError: with every mistake, one per line, naming the field, the value and the remedy.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error
        if not isinstance(loaded, dict | None):
            raise ConfigError(f"{path}: expected a mapping of settings, found {type(loaded).__name__}")
        values = loaded or {}
    values |= overrides or {}
    try:
        return Settings(**values)
    except ValidationError as error:
        # Not `from error`: pydantic's own message would show every value, secrets included.
        raise ConfigError("\n".join(_mistake(e) for e in error.errors(include_url=False))) from None


def _mistake(error: ErrorDetails) -> str:
    """Name the field, what is wrong, and the value found unless it is a group or may be a secret."""
    place = ".".join(str(part) for part in error["loc"]) or "(settings)"
    hidden = isinstance(error["input"], dict) or error["type"] == "missing" or SECRET.search(place)
    return f"{place}: {error['msg']}" + ("" if hidden else f" (found {error['input']!r})")
