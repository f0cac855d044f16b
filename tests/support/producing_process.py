"""Append numbered messages to an embedded log, one process of several."""

from __future__ import annotations

import sys
from pathlib import Path

from daemon.sources.base import Message
from daemon.sources.embedded import EmbeddedLog


def main() -> None:
    """Append `count` messages in batches of 5, each with an idempotency key, every batch twice."""
    path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    log = EmbeddedLog(path)
    for start in range(0, count, 5):
        batch = [
            Message(f"{name}-{n}".encode(), idempotency_key=f"{name}-{n}") for n in range(start, start + 5)
        ]
        assert log.append("t", batch) == log.append("t", batch)


if __name__ == "__main__":
    main()
