"""The process of a Kafka consumer without Kafka: three records a poll, and death at the third poll."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

from daemon.errors import OffsetGap, SourceUnavailable
from daemon.sources.base import Lag, Place, Record
from daemon.sources.kafka.child import Server
from daemon.sources.kafka.facts import REBALANCE_KINDS, KafkaFacts
from daemon.sources.kafka.frames import Channel, pack_status

PLACE = Place("photos", 0)
PER_POLL, DIES_AT = 3, 6
# A stored offset of these has a meaning.
GAP, AWAY = 1000, 2000
EXIT_STATUS = 7

FACTS = KafkaFacts(
    up=True,
    pause_reason=None,
    last_poll=12.5,
    positions={PLACE: 3},
    stalled=(PLACE,),
    rebalances=dict.fromkeys(REBALANCE_KINDS, 1),
    queued_records=2,
    queued_bytes=20,
    stale_records=3,
    commit_failures=4,
    gap_records=5,
)
LAG = {PLACE: Lag(4, 1.5)}


class ScriptedSource:
    """Gives records from where it is told to start."""

    def __init__(self) -> None:
        self.begun = self.next = 0
        self.paused = False

    def start(self, stored: Mapping[Place, int]) -> None:
        """Fail at the offsets that mean so."""
        self.begun = self.next = stored.get(PLACE, 0)
        if self.begun == GAP:
            raise OffsetGap("the log begins at 1001")
        if self.begun == AWAY:
            raise SourceUnavailable("no broker answers")

    def poll(self, timeout: float, max_records: int) -> Sequence[Record]:
        """Return the next records, or die."""
        if self.paused:
            return []
        if self.next == DIES_AT and self.begun < DIES_AT:
            os._exit(EXIT_STATUS)
        first, self.next = self.next, self.next + PER_POLL
        return [Record(*PLACE, offset, None, b"%d" % offset) for offset in range(first, self.next)]

    def commit(self, next_offsets: Mapping[Place, int]) -> None:
        """Take the word for it."""

    def pause(self) -> None:
        """Give nothing."""
        self.paused = True

    def resume(self) -> None:
        """Give again."""
        self.paused = False

    def facts(self) -> KafkaFacts:
        """Return what the test expects."""
        return FACTS

    def lag(self) -> Mapping[Place, Lag]:
        """Return what the test expects."""
        return LAG

    def close(self) -> None:
        """Have nothing to close."""


def main() -> None:
    """Serve, after one notice."""
    requests, notices = Channel(socket.socket(fileno=0)), Channel(socket.socket(fileno=1))
    requests.receive()
    notices.send(pack_status(FACTS, LAG))
    Server(ScriptedSource(), requests).run()


if __name__ == "__main__":
    main()
