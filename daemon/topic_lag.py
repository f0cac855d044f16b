"""How far a thread is behind a topic that it reads outside every consumer group."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.clock import Clock
from daemon.metrics import Metrics
from daemon.sources.base import Place, Record


def show_lag(
    metrics: Metrics,
    stream: str,
    kind: str,
    place: Place,
    behind: int,
    waiting: Sequence[Record],
    clock: Clock,
) -> None:
    """Export the lag of one partition.

    Args:
        metrics: the daemon's instruments.
        stream: the stream's name.
        kind: of the topic, `control` or `requests`.
        place: the partition.
        behind: offsets from the next one wanted to the partition's end.
        waiting: the next records, oldest first; none though `behind` is above 0 if the rest of the
            partition holds only the markers of transactions.
        clock: time.
    """
    labels = (stream, kind, str(place.partition))
    metrics.topic_lag_records.labels(*labels).set(behind if waiting else 0)
    age = max(0.0, clock.now() - waiting[0].timestamp) if waiting else 0.0
    metrics.topic_lag_seconds.labels(*labels).set(age)
