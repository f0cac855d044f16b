"""Offset arithmetic: gaps between what is wanted and what the log still has, lag, stall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from daemon.sources.base import Place


@dataclass(frozen=True)
class Gap:
    """A wanted offset that the log does not have.

    Attributes:
        wanted: next offset wanted.
        beginning, end: the log's range now, end exclusive; None if the partition is gone.
    """

    place: Place
    wanted: int
    beginning: int | None
    end: int | None

    @property
    def lost(self) -> int:
        """Records that retention removed before they were read; 0 where the log was replaced."""
        if self.beginning is None or self.wanted > self.beginning:
            return 0
        return self.beginning - self.wanted

    def describe(self) -> str:
        """Say what happened and what can be done."""
        where = f"topic {self.place.topic} partition {self.place.partition}"
        if self.beginning is None:
            return (
                f"{where}: next offset {self.wanted} is stored, but the partition no longer exists: the "
                "topic was created anew; point the stream to the old topic, or set on_gap: skip"
            )
        if self.lost:
            return (
                f"{where}: next offset {self.wanted} is stored, but the log begins at {self.beginning}: "
                f"{self.lost} records were removed by retention before they were read; restore them, or "
                "set on_gap: skip to go on without them, and raise the topic's retention.ms"
            )
        return (
            f"{where}: next offset {self.wanted} is stored, but the log ends at {self.end}: it was "
            "truncated or created anew; restore it, or set on_gap: skip to read it from its beginning "
            "(samples already stored count once)"
        )


def find_gaps(
    wanted: Mapping[Place, int], beginnings: Mapping[Place, int], ends: Mapping[Place, int]
) -> list[Gap]:
    """List the wanted offsets that lie outside their log; equal to its end is not a gap."""
    gaps = []
    for place, offset in sorted(wanted.items()):
        beginning, end = beginnings.get(place), ends.get(place)
        if beginning is None or end is None:
            gaps.append(Gap(place, offset, None, None))
        elif not beginning <= offset <= end:
            gaps.append(Gap(place, offset, beginning, end))
    return gaps


def oldest_age(now: float, head: float | None, delivered: float | None, caught_up: float) -> float:
    """Bound from above the age in seconds of the oldest record not consumed.

    Args:
        now: seconds since the epoch.
        head: timestamp of the oldest record fetched and waiting, which is exact; None if none waits.
        delivered: timestamp of the last record handed over, None if there was none.
        caught_up: when the partition was last seen without lag, or was assigned.
    """
    if head is not None:
        return max(0.0, now - head)
    # An unfetched record came after the last one delivered and after lag was last seen to be 0.
    return max(0.0, now - max(caught_up, delivered or 0.0))
