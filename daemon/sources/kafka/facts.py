"""What a Kafka consumer knows about itself, for metrics, `/readyz` and `accrete lag`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from daemon.sources.base import Place

PauseReason = Literal["intake", "backpressure"]
PAUSE_REASONS: tuple[PauseReason, ...] = ("intake", "backpressure")

RebalanceKind = Literal["assigned", "revoked", "lost"]
REBALANCE_KINDS: tuple[RebalanceKind, ...] = ("assigned", "revoked", "lost")


@dataclass(frozen=True)
class KafkaFacts:
    """One look at a consumer; counts are since its start.

    Attributes:
        up: whether a broker has answered lately.
        pause_reason: why nothing is fetched, None while fetching: `intake` asked for it (an operator's pause,
            or work that must be done before the next record), or the queue is full.
        last_poll: when the consumer was last polled, seconds since the epoch.
        positions: next offset to hand over, per assigned partition.
        stalled: partitions with lag, assigned and not paused, that have given no record for too long.
        rebalances: partitions-changed events by kind.
        queued_records, queued_bytes: fetched and waiting for intake.
        stale_records: dropped because they were fetched under an earlier assignment.
        commit_failures: commits that the group refused or that did not arrive; the store wins anyway.
        gap_records: records that retention removed before they were read, skipped by `on_gap`.
    """

    up: bool
    pause_reason: PauseReason | None
    last_poll: float
    positions: Mapping[Place, int]
    stalled: tuple[Place, ...]
    rebalances: Mapping[RebalanceKind, int]
    queued_records: int
    queued_bytes: int
    stale_records: int
    commit_failures: int
    gap_records: int
