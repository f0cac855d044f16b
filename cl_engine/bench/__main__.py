"""`python -m cl_engine.bench DATA`: compare the methods on a data set or an image directory."""

from __future__ import annotations

from cl_engine.bench.cli import main

main("python -m cl_engine.bench")
