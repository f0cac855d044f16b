"""From what a Kafka consumer knows about itself to the daemon's metrics."""

from __future__ import annotations

from prometheus_client import Counter

from daemon.metrics import Metrics
from daemon.sources.base import Place
from daemon.sources.kafka.facts import PAUSE_REASONS, REBALANCE_KINDS, KafkaFacts


class FactsExporter:
    """Sets one stream's consumer metrics; a partition that moves away takes its labels with it.

    Args:
        metrics: the daemon's instruments.
        stream: the stream's name.
    """

    def __init__(self, metrics: Metrics, stream: str) -> None:
        self._metrics = metrics
        self._stream = stream
        self._shown: set[Place] = set()
        self._counted: dict[tuple[Counter, tuple[str, ...]], int] = {}
        for reason in PAUSE_REASONS:
            metrics.fetch_paused.labels(stream, reason).set(0)
        for kind in REBALANCE_KINDS:
            metrics.rebalances.labels(stream, kind)
        for instrument in (metrics.stale_records, metrics.commit_failures, metrics.gap_records):
            instrument.labels(stream)

    def update(self, facts: KafkaFacts) -> None:
        """Export one look."""
        m, stream = self._metrics, self._stream
        m.group_poll.labels(stream).set(facts.last_poll)
        for reason in PAUSE_REASONS:
            m.fetch_paused.labels(stream, reason).set(facts.pause_reason == reason)
        for place, position in facts.positions.items():
            m.consumer_position.labels(stream, str(place.partition)).set(position)
            m.partition_stalled.labels(stream, str(place.partition)).set(place in facts.stalled)
        for gone in self._shown - facts.positions.keys():
            for gauge in (m.consumer_position, m.partition_stalled, m.lag_records, m.lag_seconds):
                gauge.remove(stream, str(gone.partition))
        self._shown = set(facts.positions)
        m.queued_records.labels(stream).set(facts.queued_records)
        m.queued_bytes.labels(stream).set(facts.queued_bytes)
        for kind, count in facts.rebalances.items():
            self._raise_to(m.rebalances, count, stream, kind)
        self._raise_to(m.stale_records, facts.stale_records, stream)
        self._raise_to(m.commit_failures, facts.commit_failures, stream)
        self._raise_to(m.gap_records, facts.gap_records, stream)

    def _raise_to(self, counter: Counter, total: int, *labels: str) -> None:
        key = (counter, labels)
        counter.labels(*labels).inc(max(0, total - self._counted.get(key, 0)))
        self._counted[key] = total
