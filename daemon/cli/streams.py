"""The topics of a configured stream, for commands that need no daemon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from daemon.cli.client import fail
from daemon.clock import SystemClock
from daemon.errors import DaemonError
from daemon.settings import KafkaSource, Settings, StreamSettings
from daemon.sources import labelled_topic, open_reader, open_sink
from daemon.sources.base import Reader, Sink
from daemon.sources.log import EmbeddedLog


@dataclass(frozen=True)
class Topics:
    """A stream's log, opened.

    Attributes:
        stream: the stream's name.
        topic: its labelled topic.
        sink, reader: connect when they are first used.
    """

    stream: str
    topic: str
    sink: Sink
    reader: Reader


def chosen_stream(settings: Settings, stream: str | None) -> tuple[str, StreamSettings]:
    """Return the stream's name and settings, or print what is wrong and exit with status 1."""
    if stream is None and len(settings.streams) > 1:
        fail(f"there are several streams: name one with --stream ({', '.join(sorted(settings.streams))})")
    name = stream or next(iter(settings.streams))
    if name not in settings.streams:
        fail(f"no stream {name!r} is configured: use one of {', '.join(sorted(settings.streams))}")
    return name, settings.streams[name]


@contextmanager
def opened_topics(settings: Settings, stream: str) -> Iterator[Topics]:
    """Open a stream's log; an error in the block is printed, and the status is 1."""
    source = settings.streams[stream].source
    log = None
    if not isinstance(source, KafkaSource):
        settings.state_directory.mkdir(parents=True, exist_ok=True)
        log = EmbeddedLog(settings.state_directory / "topics.db", SystemClock())
    sink, reader = open_sink(source, log), open_reader(source, log)
    try:
        yield Topics(stream, labelled_topic(stream, source), sink, reader)
    except DaemonError as error:
        fail(f"stream {stream!r}: {error}")
    finally:
        sink.close()
        reader.close()
        if log is not None:
            log.close()
