"""Metrics of a Kafka source."""

from __future__ import annotations

from dataclasses import replace

from daemon.metrics import Metrics
from daemon.sources.base import Place
from daemon.sources.kafka import KafkaFacts
from daemon.sources.kafka.export import FactsExporter

A, B = Place("photos", 0), Place("photos", 1)
FACTS = KafkaFacts(
    up=True,
    pause_reason="backpressure",
    last_poll=1234.5,
    positions={A: 10, B: 20},
    stalled=(B,),
    rebalances={"assigned": 2, "revoked": 1, "lost": 0},
    queued_records=7,
    queued_bytes=700,
    stale_records=3,
    commit_failures=1,
    gap_records=5,
)


def test_every_fact_becomes_a_metric() -> None:
    """What the consumer knows, an operator sees; `up` is what intake makes `accrete_source_up` of."""
    metrics = Metrics()
    FactsExporter(metrics, "photos").update(FACTS)
    value = metrics.registry.get_sample_value
    stream = {"stream": "photos"}
    assert value("accrete_consumer_group_poll_timestamp_seconds", stream) == 1234.5
    assert value("accrete_consumer_fetch_paused", stream | {"reason": "backpressure"}) == 1
    assert value("accrete_consumer_fetch_paused", stream | {"reason": "intake"}) == 0
    assert value("accrete_consumer_position", stream | {"partition": "1"}) == 20
    assert value("accrete_consumer_partition_stalled", stream | {"partition": "0"}) == 0
    assert value("accrete_consumer_partition_stalled", stream | {"partition": "1"}) == 1
    assert value("accrete_consumer_queue_records", stream) == 7
    assert value("accrete_consumer_queue_bytes", stream) == 700
    assert value("accrete_consumer_rebalances_total", stream | {"kind": "assigned"}) == 2
    assert value("accrete_consumer_rebalances_total", stream | {"kind": "lost"}) == 0
    assert value("accrete_consumer_stale_records_total", stream) == 3
    assert value("accrete_consumer_commit_failures_total", stream) == 1
    assert value("accrete_consumer_gap_records_total", stream) == 5


def test_counters_follow_the_facts_and_survive_a_new_consumer() -> None:
    """Looking twice counts nothing twice, and a consumer that starts over takes nothing back."""
    metrics = Metrics()
    exporter = FactsExporter(metrics, "photos")
    for stale in (3, 3, 8, 0, 2):
        exporter.update(replace(FACTS, stale_records=stale))
    assert (
        metrics.registry.get_sample_value("accrete_consumer_stale_records_total", {"stream": "photos"}) == 10
    )


def test_a_partition_that_moves_away_is_shown_no_more() -> None:
    """Its last position and lag would stand there for ever, and alert."""
    metrics = Metrics()
    exporter = FactsExporter(metrics, "photos")
    metrics.lag_records.labels("photos", "1").set(99)
    exporter.update(FACTS)
    exporter.update(replace(FACTS, positions={A: 11}, stalled=()))
    labels = {"stream": "photos", "partition": "1"}
    for name in ("position", "partition_stalled", "lag_records"):
        assert metrics.registry.get_sample_value(f"accrete_consumer_{name}", labels) is None
