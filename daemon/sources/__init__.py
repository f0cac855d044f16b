"""Where messages come from and go to: the settings choose the implementation."""

from __future__ import annotations

from typing import Literal

from daemon.clock import Clock
from daemon.metrics import Metrics
from daemon.settings import EmbeddedSource as EmbeddedSettings
from daemon.settings import FolderSource as FolderSettings
from daemon.settings import KafkaSource as KafkaSettings
from daemon.settings import LogSettings, SourceSettings, StreamSettings
from daemon.sources.base import Reader, Sink, Source
from daemon.sources.embedded import EmbeddedReader, EmbeddedSink, EmbeddedSource
from daemon.sources.log import EmbeddedLog
from daemon.sources.transactions import Transactions

__all__ = [
    "control_topic",
    "events_topic",
    "labelled_topic",
    "open_reader",
    "open_sink",
    "open_source",
    "open_transactions",
    "request_topics",
]


def labelled_topic(stream: str, settings: SourceSettings) -> str:
    """Return the topic that a stream's samples are read from."""
    if isinstance(settings, FolderSettings):
        return stream
    return settings.topic or stream


def events_topic(stream: str, settings: StreamSettings) -> str:
    """Return the topic that a stream's events are written to."""
    return settings.events.topic or f"{labelled_topic(stream, settings.source)}.events"


def control_topic(stream: str, settings: StreamSettings) -> str:
    """Return the topic that a stream's commands are read from."""
    return settings.control.topic or f"{labelled_topic(stream, settings.source)}.control"


def request_topics(stream: str, settings: StreamSettings) -> tuple[str, str]:
    """Return the topics that a stream's requests are read from and answered to."""
    topic, chosen = labelled_topic(stream, settings.source), settings.requests
    return chosen.topic or f"{topic}.requests", chosen.predictions_topic or f"{topic}.predictions"


def open_source(
    stream: str,
    settings: SourceSettings,
    log: EmbeddedLog,
    clock: Clock,
    metrics: Metrics,
    log_settings: LogSettings,
) -> Source:
    """Return a stream's source, not started yet.

    Args:
        stream: the stream's name.
        settings: what the configuration says.
        log: the embedded log of the state directory, which `embedded` and `folder` read from.
        clock: time.
        metrics: where a Kafka consumer shows what it knows about itself.
        log_settings: how a consumer in a process of its own logs.
    """
    topic = labelled_topic(stream, settings)
    if isinstance(settings, EmbeddedSettings):
        return EmbeddedSource(log, topic, clock)
    if isinstance(settings, FolderSettings):
        # It knows the image formats, and with them imports torch, which producers do without.
        from daemon.sources.folder import FolderSource

        return FolderSource(settings, log, topic, clock)
    # Only a stream from Kafka needs the client.
    from daemon.sources.kafka import KafkaSource
    from daemon.sources.kafka.export import FactsExporter
    from daemon.sources.kafka.process import ProcessKafkaSource

    on_facts = FactsExporter(metrics, stream).update
    if settings.process:
        return ProcessKafkaSource(settings, log_settings, clock, on_facts)
    return KafkaSource(settings, clock, on_facts)


def open_sink(settings: SourceSettings, log: EmbeddedLog | None) -> Sink:
    """Return a producer to the log that a stream's source reads from.

    Args:
        settings: what the configuration says.
        log: the embedded log of the state directory; a stream from Kafka does without.
    """
    if isinstance(settings, EmbeddedSettings | FolderSettings):
        assert log is not None, "this stream's topics are in the embedded log"
        return EmbeddedSink(log)
    from daemon.sources.kafka import KafkaSink

    return KafkaSink(settings)


def open_reader(settings: SourceSettings, log: EmbeddedLog | None) -> Reader:
    """Return a reader of the log that a stream's source reads from; the arguments are `open_sink`'s."""
    if isinstance(settings, EmbeddedSettings | FolderSettings):
        assert log is not None, "this stream's topics are in the embedded log"
        return EmbeddedReader(log)
    from daemon.sources.kafka.reader import KafkaReader

    return KafkaReader(settings)


def open_transactions(
    stream: str, purpose: Literal["events", "requests"], settings: StreamSettings, metrics: Metrics
) -> Transactions | None:
    """Return the transactions that a stream's output is to be written in, None if it is not to be.

    Args:
        stream: the stream's name.
        purpose: the section whose `transactions` decides.
        settings: of the stream.
        metrics: where they are counted.
    """
    section = settings.events if purpose == "events" else settings.requests
    if not section.transactions:
        return None
    source = settings.source
    assert isinstance(source, KafkaSettings), "settings check it"
    from daemon.sources.kafka.transactions import KafkaTransactions

    # The same at each start of this daemon, and of no other: the group is one deployment's.
    parts = (source.group_id, source.group_instance_id, stream, purpose)
    name = ".".join(part for part in parts if part is not None)
    return KafkaTransactions(
        source, name, count=lambda outcome: metrics.transactions.labels(stream, outcome).inc()
    )
