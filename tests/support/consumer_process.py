"""The process of a daemon's Kafka consumer, with something done to it first.

Run as a module in that process's place, with what is to be done and its argument.
"""

from __future__ import annotations

import sys
from pathlib import Path

from daemon.sources.kafka.process import ProcessKafkaSource


def use(what: str, argument: str) -> None:
    """Have this daemon start its consumers so.

    Args:
        what: `die` at a step of `kill_steps`, or `gaps` between polls to be written to a file.
        argument: the step, or the file.
    """
    ProcessKafkaSource.command = (sys.executable, "-m", __name__, what, argument)


def main(what: str, argument: str) -> None:
    """Do it, and be the consumer's process."""
    from daemon.sources.kafka import child
    from tests.support import kill_steps, poll_gaps

    if what == "die":
        kill_steps.arm_consumer(argument)
    else:
        assert what == "gaps"
        poll_gaps.record_here(Path(argument))
    child.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
