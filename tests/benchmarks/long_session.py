"""A session that takes many times `max_poll_interval`: the consumer group never rebalances."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.benchmarks.frame import parse_options, report
from tests.support import poll_gaps
from tests.support.disturbed_run import PARTITIONS, DisturbedRun, write_weights
from tests.support.group_view import GroupView, group_generations
from tests.support.kafka_broker import KafkaBroker
from tests.support.labelled_stream import PULSES, STREAM, made_stream
from tests.support.stream_feed import Stuck
from tests.support.stream_outcome import Outcome

LOOK_SECONDS = 1.0
# Share of the session during which the second group's records arrive, evenly.
ARRIVAL_SHARE = 0.9


@dataclass(frozen=True)
class Plan:
    """How long the session takes at least, and the poll interval that the group allows, in seconds."""

    session_seconds: float
    max_poll_interval_seconds: float


FULL = Plan(600.0, 60.0)
QUICK = Plan(30.0, 10.0)


@dataclass(frozen=True)
class Watched:
    """What was seen.

    Attributes:
        session_seconds: the long session took.
        rebalances: changes of the group, by whichever of three views saw most: the group described every
            second, what the broker wrote down of it, and the daemon's own count.
        max_poll_gap_seconds: longest time between two polls of the consumer.
        looks: at the group while the session ran.
        outcome: what the daemon made of the stream.
    """

    session_seconds: float
    rebalances: int
    max_poll_gap_seconds: float
    looks: int
    outcome: Outcome


def watch_session(root: Path, plan: Plan, seed: int) -> Watched:
    """Run one long session, with records arriving all the while, and watch the group."""
    (root / "broker").mkdir()
    broker = KafkaBroker(root / "broker")
    broker.start()
    write_weights(root / "backbone.safetensors")
    run = DisturbedRun(
        root / "long-session",
        root / "backbone.safetensors",
        made_stream(2, PARTITIONS, seed),
        broker.address,
        # The daemon's own defaults but for the interval.
        source={
            "max_poll_interval_seconds": plan.max_poll_interval_seconds,
            "session_timeout_seconds": 45.0,
            "heartbeat_seconds": 3.0,
        },
        pulse_seconds=ARRIVAL_SHARE * plan.session_seconds / (PULSES + 1),
    )
    gaps = root / "poll-gap"
    try:
        run.daemon.start(prepare=partial(poll_gaps.record, gaps), session_seconds=plan.session_seconds)
        run.feeder.start()
        run.wait(lambda: run.feeder.begun() == 1, "the session begins")
        first = _stable(run)
        before = group_generations(broker.address, run.at_broker.group_id)
        if not before:
            raise Stuck("the broker has written down no generation of the group: its format is another one")
        looks = changes = 0
        while run.feeder.promoted() == 0:
            run.daemon.check()
            run.feeder.done()
            changes += run.group() != first
            looks += 1
            run.rest(LOOK_SECONDS)
        after = group_generations(broker.address, run.at_broker.group_id)
        counted = _own_count(run.daemon.wait_ready())
        gap = float(gaps.read_text())
        session = run.feeder.ended()[0]
        # The second session would take as long and show nothing new.
        run.daemon.kill()
        run.daemon.start()
        outcome = run.settle()
    finally:
        run.stop()
        broker.stop()
    assert session.ended_at is not None
    return Watched(
        session.ended_at - session.started_at,
        max(changes, len(after) - len(before), counted),
        gap,
        looks,
        outcome,
    )


def _stable(run: DisturbedRun) -> GroupView:
    run.wait(run.is_shared, "the group is stable")
    return run.group()


def _own_count(url: str) -> int:
    """Return how often the daemon says that the group changed, the first assignment left out."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    counts = {
        sample.labels["kind"]: round(sample.value)
        for family in families
        for sample in family.samples
        if sample.name == "accrete_consumer_rebalances_total" and sample.labels["stream"] == STREAM
    }
    if counts["assigned"] < 1:
        raise Stuck(f"the daemon counts no assignment: {counts}")
    return sum(counts.values()) - 1


def main() -> None:
    """Measure and report; every figure is the worst over the seeds."""
    options = parse_options("long_session", __doc__ or "")
    plan = QUICK if options.quick else FULL
    runs = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory(prefix="accrete-long-session-") as root:
            runs.append(watch_session(Path(root), plan, seed))
    report(
        options,
        "A session much longer than max_poll_interval",
        {
            "session_seconds": min(run.session_seconds for run in runs),
            "max_poll_interval_seconds": plan.max_poll_interval_seconds,
            "rebalances": max(run.rebalances for run in runs),
            "max_poll_gap_seconds": max(run.max_poll_gap_seconds for run in runs),
            "looks_at_the_group": sum(run.looks for run in runs),
            "lost": sum(run.outcome.lost for run in runs),
            "duplicated": sum(run.outcome.duplicated for run in runs),
        },
        ["The session is slow because the real learner learns the same samples again and again."],
    )


if __name__ == "__main__":
    main()
