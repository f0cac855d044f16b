"""How the interpreter divides its time between threads."""

from __future__ import annotations

# A thread that comes back from the disk, the network or SQLite waits so long for its turn if another one
# computes. Python's own 5 ms come some forty times in a transaction of 2,000 samples.
SWITCH_SECONDS = 0.0005
