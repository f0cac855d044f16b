"""A Kafka topic as the source of a stream."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from daemon.settings.kafka_security import KafkaSecurity
from daemon.settings.section import Section


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
    on_stall: Literal["restart", "report"] = "restart"
    """What a stalled partition does: `restart` fails /livez, so that the daemon's keeper begins anew;
    `report` only shows it as a metric."""
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
    process: bool = True
    """Whether the consumer has a process of its own, of some 70 MB, where it takes no turns from parsing and
    serving."""
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
