"""What all unit tests share."""

from __future__ import annotations

import os

# Small products are slower on several threads; torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
