"""What became of consumed records and their samples; the outcomes add up to all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from daemon.messages.parse import ParsedRecord
from daemon.state.base import StoreResult


def record_outcomes(
    parsed: Sequence[ParsedRecord], result: StoreResult
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Count records and samples of one transaction by outcome, with the label values of the metrics.

    A record is accepted if any of its samples was stored, a duplicate if all its good samples were
    known before, dead-lettered if nothing in it was good, or a tombstone.

    Args:
        parsed: the records in the order in which their samples were stored.
        result: what the store said.
    """
    good = sum(len(item.samples) for item in parsed)
    if good == result.stored:
        # Nothing came twice, as nearly always: no id need be looked at.
        fresh = [len(item.samples) for item in parsed]
    else:
        seen = set(result.duplicate_ids)
        fresh = [_fresh(item, seen) for item in parsed]
    stored = sum(fresh)
    return (
        Counter(map(_outcome, parsed, fresh)),
        {
            "stored": stored,
            "duplicate": good - stored,
            "dead_lettered": sum(len(item.dead) for item in parsed),
        },
    )


def _fresh(item: ParsedRecord, seen: set[str]) -> int:
    """Count the samples that are not seen yet; of an id that comes twice the first is stored."""
    fresh = 0
    for sample in item.samples:
        fresh += sample.id not in seen
        seen.add(sample.id)
    return fresh


def _outcome(item: ParsedRecord, fresh: int) -> str:
    if item.tombstone:
        return "tombstone"
    if not item.samples:
        return "dead_lettered"
    return "accepted" if fresh else "duplicate"
