"""What all unit tests share."""

from __future__ import annotations

import os

# Small products are slower on several threads; torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.intake_bench import Workbench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    """Set up a workbench of intake for one test."""
    # Takes seconds, which the tests of other things need not wait for.
    from tests.support.intake_bench import Workbench

    bench = Workbench(tmp_path)
    yield bench
    bench.state.close()
