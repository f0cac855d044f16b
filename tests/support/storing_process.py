"""Store one sample per offset without end, for a test that kills this process at any instruction."""

from __future__ import annotations

import sys
from pathlib import Path

from daemon.clock import SystemClock
from daemon.errors import DeadLetterReason
from daemon.sources.base import Place
from daemon.state import SqlState
from daemon.state.base import DeadSample, NewSample

PLACE = Place("labelled", 0)


def main() -> None:
    """Go on from the stored offset; print a line per transaction."""
    state = SqlState.open(Path(sys.argv[1]), holdout_fraction={"s": 0.2}, clock=SystemClock())
    offset = state.next_offsets("s").get(PLACE, 0)
    while True:
        new = [
            NewSample(f"id-{n}", f"class-{n % 7}", "image/png", bytes(2048), PLACE, n, 0, 0.0)
            for n in range(offset, offset + 9)
        ]
        dead = [DeadSample(PLACE, offset + 9, 0, DeadLetterReason.BAD_PAYLOAD, "damaged")]
        offset += 10
        state.store("s", new, dead, {PLACE: offset})
        print(offset, flush=True)


if __name__ == "__main__":
    main()
