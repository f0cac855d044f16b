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
    seen = set(result.duplicate_ids)
    records: Counter[str] = Counter()
    samples: Counter[str] = Counter()
    for item in parsed:
        fresh = 0
        for sample in item.samples:
            # Of an id that arrives twice in one transaction the first is stored.
            fresh += sample.id not in seen
            seen.add(sample.id)
        samples["stored"] += fresh
        samples["duplicate"] += len(item.samples) - fresh
        samples["dead_lettered"] += len(item.dead)
        records[_outcome(item, fresh)] += 1
    return records, samples


def _outcome(item: ParsedRecord, fresh: int) -> str:
    if item.tombstone:
        return "tombstone"
    if not item.samples:
        return "dead_lettered"
    return "accepted" if fresh else "duplicate"
