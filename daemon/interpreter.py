"""How the interpreter divides its time between threads, and what its collector walks through."""

from __future__ import annotations

import gc

# A thread that comes back from the disk, the network or SQLite waits so long for its turn if another one
# computes. Python's own 5 ms come some forty times in a transaction of 2,000 samples.
SWITCH_SECONDS = 0.0005
# So many more objects than the last time have the collector look at the young ones again. Intake holds some
# seven for each of some thousand records until they are stored: with Python's own 700 it walks through them
# again and again, and finds nothing. With 10,000 it still does so every 5,000 images, which comes to a
# microsecond an image.
YOUNG_OBJECTS = 100_000
_PYTHONS_OWN = gc.get_threshold()


def keep_what_is_there() -> None:
    """Leave what the start has built, torch's modules above all, out of every later collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *_PYTHONS_OWN[1:])


def release_what_is_there() -> None:
    """Undo it: extension modules that find their objects alive at the end of the process warn of leaks."""
    gc.unfreeze()
    gc.set_threshold(*_PYTHONS_OWN)
