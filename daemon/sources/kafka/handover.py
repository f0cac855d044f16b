"""The bounded queue between the consumer's thread and intake, and what is known of each partition.

Three threads meet here: the consumer's IO thread (rebalance callbacks), the thread that polls it, and
intake. Everything is behind one lock, and nobody blocks while holding it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from daemon.clock import Clock
from daemon.sources.base import Lag, Place, Record
from daemon.sources.kafka.facts import REBALANCE_KINDS, PauseReason, RebalanceKind
from daemon.sources.kafka.offsets import oldest_age

# Resuming at half of the bound, not just under it, saves a pause and a resume per record.
RESUME_SHARE = 0.5
# Looks further apart than this had an outage between them.
OBSERVATION_GAP_SECONDS = 5.0
# What one poll of intake is copied through, twice between processes: it should stay in the processor's cache.
TAKE_BYTES = 4 * 2**20


@dataclass
class Partition:
    """What is known of one partition.

    Attributes:
        epoch: counts assignments and revocations; a record stamped with another epoch is stale.
        assigned: whether this member owns it now.
        stored: next offset wanted, as the store has it; None if the store knows nothing.
        next: next offset to hand over; anything below has been handed over already.
        claimed: whether the group's committed offset is one that this process wrote.
        leaving: whether the group is taking the partition away: nothing more is handed over.
        stored_here: whether something was stored since the partition was assigned.
        unconfirmed: whether the group's offset may be behind the store's, as a kill can leave it.
        position, end: fetch position and end of the log, as of the last look.
        caught_up_at: when it was last seen without lag, or was assigned; seconds since the epoch.
        progress_at: when it last gave a record or had none to give, or was not to; monotonic seconds.
    """

    epoch: int = 0
    assigned: bool = False
    stored: int | None = None
    next: int | None = None
    claimed: bool = False
    leaving: bool = False
    stored_here: bool = False
    unconfirmed: bool = False
    position: int | None = None
    end: int | None = None
    delivered_timestamp: float | None = None
    caught_up_at: float = 0.0
    progress_at: float = 0.0


@dataclass
class _Chunk:
    place: Place
    epoch: int
    records: list[Record]


class Handover:
    """Bounded, generation-stamped hand-over of records from the consumer to intake.

    Args:
        max_records, max_bytes: beyond either, the consumer is to pause.
        clock: for ages and stalls.
    """

    def __init__(self, max_records: int, max_bytes: int, clock: Clock) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._clock = clock
        self._changed = threading.Condition()
        self._chunks: deque[_Chunk] = deque()
        self._records = 0
        self._bytes = 0
        self._full = False
        self._paused_by_intake = False
        self._ended = False
        self._observed_at = 0.0
        self._partitions: dict[Place, Partition] = {}
        self._pending: dict[Place, int] = {}
        self._stale = 0
        self._rebalances: dict[RebalanceKind, int] = dict.fromkeys(REBALANCE_KINDS, 0)

    # -- assignment: called from the consumer's IO thread, so nothing here may wait
    def start(self, stored: Mapping[Place, int]) -> None:
        """Take the store's offsets as the truth."""
        with self._changed:
            for place, offset in stored.items():
                self._partitions[place] = Partition(stored=offset, next=offset)

    def assign(self, places: Iterable[Place]) -> dict[Place, int]:
        """Note newly owned partitions; return where to seek.

        A partition is left out where the group's committed offset decides: the store knows nothing
        of it, or this process has committed there, and another member may have gone on since.
        """
        seek = {}
        with self._changed:
            self._rebalances["assigned"] += 1
            for place in places:
                part = self._partitions.setdefault(place, Partition())
                part.epoch += 1
                part.assigned = True
                part.leaving = part.stored_here = False
                part.position = part.end = None
                part.caught_up_at = self._clock.now()
                part.progress_at = self._clock.monotonic()
                if part.stored is not None and not part.claimed:
                    seek[place] = part.stored
                    part.unconfirmed = True
            self._drop_stale()
        return seek

    def leave(self, places: Iterable[Place]) -> None:
        """Hand over nothing more of partitions that are being revoked; intake still stores what it has."""
        with self._changed:
            for place in places:
                part = self._partitions.setdefault(place, Partition())
                part.epoch += 1
                part.leaving = True
            self._drop_stale()

    def is_settled(self, places: Iterable[Place]) -> bool:
        """Tell whether all that was handed over of some partitions is stored, or nothing more will be."""
        with self._changed:
            parts = [part for place in places if (part := self._partitions.get(place)) is not None]
            return self._ended or all(part.next is None or part.next <= (part.stored or 0) for part in parts)

    def stored_since_assigned(self, places: Iterable[Place]) -> dict[Place, int]:
        """Return the next offset wanted of those partitions of which something was stored since assigned."""
        with self._changed:
            parts = {place: self._partitions.get(place) for place in places}
            return {
                place: part.stored
                for place, part in parts.items()
                if part is not None and part.stored_here and part.stored is not None
            }

    def unassign(self, places: Iterable[Place], kind: RebalanceKind) -> None:
        """Note partitions that this member no longer owns; what was fetched from them is stale."""
        with self._changed:
            self._rebalances[kind] += 1
            for place in places:
                part = self._partitions.setdefault(place, Partition())
                part.epoch += 1
                part.assigned = False
                self._pending.pop(place, None)
            self._drop_stale()
            self._changed.notify_all()

    def restart(self, place: Place, offset: int) -> None:
        """Go on elsewhere in a partition, after a gap.

        Below what was handed over, the log is another one: what was fetched of the old one is stale.
        """
        with self._changed:
            part = self._partitions.setdefault(place, Partition())
            part.stored = offset
            if part.next is not None and offset < part.next:
                part.epoch += 1
                part.next = offset
                self._pending.pop(place, None)
                self._drop_stale()

    # -- the consumer's side
    def put(self, place: Place, records: Sequence[Record]) -> None:
        """Queue records just fetched; those already handed over or not owned any more are dropped."""
        with self._changed:
            part = self._partitions.setdefault(place, Partition())
            part.progress_at = self._clock.monotonic()
            fresh = _from(records, part.next)
            if not part.assigned or part.leaving:
                self._stale += len(fresh)
            elif fresh:
                self._chunks.append(_Chunk(place, part.epoch, fresh))
                self._count(fresh, 1)
                self._changed.notify_all()

    def pause_reason(self) -> PauseReason | None:
        """Say why the consumer must not fetch now."""
        with self._changed:
            share = RESUME_SHARE if self._full else 1.0
            self._full = self._records >= self._max_records * share or self._bytes >= self._max_bytes * share
            if self._paused_by_intake:
                return "intake"
            return "backpressure" if self._full else None

    def observe(self, positions: Mapping[Place, int], ends: Mapping[Place, int]) -> None:
        """Note fetch positions and ends of the log, both offsets."""
        now, monotonic = self._clock.now(), self._clock.monotonic()
        paused = self.pause_reason() is not None
        with self._changed:
            # While no broker answered, no partition could give a record: that is no stall.
            excused = paused or monotonic - self._observed_at > OBSERVATION_GAP_SECONDS
            self._observed_at = monotonic
            for place, end in ends.items():
                part = self._partitions.get(place)
                if part is None or not part.assigned:
                    continue
                part.end = end
                part.position = positions.get(place, part.position)
                if part.position is not None and part.position >= end:
                    part.progress_at = monotonic
                    if self._head(place) is None:
                        part.caught_up_at = now
                elif excused:
                    part.progress_at = monotonic

    def take_commits(self) -> dict[Place, int]:
        """Remove and return the offsets to commit, of partitions still owned."""
        with self._changed:
            commits, self._pending = self._pending, {}
            return {place: offset for place, offset in commits.items() if self._partitions[place].assigned}

    def commit_failed(self, commits: Mapping[Place, int]) -> None:
        """Put offsets back that could not be committed, unless newer ones wait already."""
        with self._changed:
            for place, offset in commits.items():
                if self._partitions[place].assigned:
                    self._pending.setdefault(place, offset)

    def committed(self, places: Iterable[Place]) -> None:
        """Note that the group's offset of these partitions is ours."""
        with self._changed:
            for place in places:
                self._partitions[place].claimed = True

    def unconfirmed(self) -> dict[Place, int]:
        """Return the store's offsets of owned partitions of which the group's may be behind."""
        with self._changed:
            return {
                place: part.stored
                for place, part in self._partitions.items()
                if part.unconfirmed and part.assigned and not part.leaving and part.stored is not None
            }

    def confirm(self, place: Place, known: int | None) -> None:
        """Note the group's offset; where it is behind the store's, that is to be committed."""
        with self._changed:
            part = self._partitions[place]
            part.unconfirmed = False
            if part.assigned and part.stored is not None and (known is None or known < part.stored):
                self._pending.setdefault(place, part.stored)

    def stored(self, place: Place) -> int | None:
        """Return the next offset that the store wants."""
        with self._changed:
            part = self._partitions.get(place)
            return None if part is None else part.stored

    # -- intake's side
    def take(self, timeout: float, max_records: int) -> list[Record]:
        """Return the next records, waiting at most the timeout (s); empty while paused by intake.

        Chunks are added until they have `TAKE_BYTES` together.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._available(), timeout)
            taken: list[Record] = []
            before = self._bytes
            while len(taken) < max_records and before - self._bytes < TAKE_BYTES and self._available():
                chunk = self._chunks.popleft()
                part = self._partitions[chunk.place]
                # An earlier assignment may have handed some over while this fetch was under way.
                fresh = _from(chunk.records, part.next)
                room = max_records - len(taken)
                batch, rest = fresh[:room], fresh[room:]
                if rest:
                    self._chunks.appendleft(_Chunk(chunk.place, chunk.epoch, rest))
                    self._count(rest, 1)
                self._count(chunk.records, -1)
                if batch:
                    part.next = batch[-1].offset + 1
                    part.delivered_timestamp = batch[-1].timestamp
                    taken += batch
            return taken

    def commit(self, next_offsets: Mapping[Place, int]) -> None:
        """Note what the store has durably, and have it committed to the group."""
        with self._changed:
            for place, offset in next_offsets.items():
                part = self._partitions.setdefault(place, Partition())
                part.stored = offset
                if part.assigned:
                    part.stored_here = True
                    self._pending[place] = offset

    def set_pause(self, paused: bool) -> None:
        """Stop or go on handing over."""
        with self._changed:
            self._paused_by_intake = paused
            self._changed.notify_all()

    def end(self) -> None:
        """Let `take` wait no longer: nothing more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    # -- looking
    def lag(self) -> dict[Place, Lag]:
        """Return the lag of each owned partition whose end is known."""
        now = self._clock.now()
        with self._changed:
            lags = {}
            for place, part in self._partitions.items():
                if not part.assigned or part.end is None:
                    continue
                head = self._head(place)
                # The fetch position is past transaction markers and compacted records; `next` is not.
                reached = head.offset if head is not None else part.position
                if reached is None:
                    continue
                records = max(0, part.end - reached)
                age = oldest_age(
                    now, head.timestamp if head else None, part.delivered_timestamp, part.caught_up_at
                )
                lags[place] = Lag(records, age if records else 0.0)
            return lags

    def stalled(self, after: float) -> tuple[Place, ...]:
        """List owned partitions that, at the last look, had had lag and given no record for so long (s)."""
        with self._changed:
            # Not now: while no broker tells the ends of the log, time alone makes no partition stalled.
            limit = self._observed_at - after
            return tuple(
                sorted(
                    p for p, part in self._partitions.items() if part.assigned and part.progress_at < limit
                )
            )

    def positions(self) -> dict[Place, int]:
        """Return the next offset to hand over of each owned partition, where known."""
        with self._changed:
            return {
                place: position
                for place, part in self._partitions.items()
                if part.assigned
                and (position := part.next if part.next is not None else part.position) is not None
            }

    def counts(self) -> tuple[int, int, int, Mapping[RebalanceKind, int]]:
        """Return queued records, queued bytes, stale records dropped, and rebalances by kind."""
        with self._changed:
            return self._records, self._bytes, self._stale, dict(self._rebalances)

    # -- helpers; the lock is held
    def _available(self) -> bool:
        return bool(self._chunks) and not self._paused_by_intake

    def _head(self, place: Place) -> Record | None:
        return next((chunk.records[0] for chunk in self._chunks if chunk.place == place), None)

    def _count(self, records: Sequence[Record], sign: int) -> None:
        self._records += sign * len(records)
        self._bytes += sign * sum(len(r.value) for r in records if r.value is not None)

    def _drop_stale(self) -> None:
        kept: deque[_Chunk] = deque()
        for chunk in self._chunks:
            if chunk.epoch == self._partitions[chunk.place].epoch:
                kept.append(chunk)
            else:
                self._stale += len(chunk.records)
                self._count(chunk.records, -1)
        self._chunks = kept


def _from(records: Sequence[Record], offset: int | None) -> list[Record]:
    """Leave out what lies below an offset; records ascend, so a look at the first is mostly enough."""
    if offset is None or not records or records[0].offset >= offset:
        return list(records)
    return [record for record in records if record.offset >= offset]
