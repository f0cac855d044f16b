"""What every benchmark shares: arguments, the machine, the table for people, the JSON for the record."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cl_engine.measurement import machine, versions

Figure = int | float | bool | str | Sequence[float]


@dataclass(frozen=True)
class Options:
    """What a benchmark was asked for.

    Attributes:
        quick: the same measurement on less data, about a minute on 2 cores.
        seeds: to repeat it with.
        json: where the figures go.
        command: how to run it again.
    """

    quick: bool
    seeds: tuple[int, ...]
    json: Path
    command: str


def parse_options(name: str, purpose: str, arguments: Sequence[str] | None = None) -> Options:
    """Parse a benchmark's command line.

    Args:
        name: module name under `tests.benchmarks`.
        purpose: one sentence for --help.
        arguments: instead of the process's own.
    """
    parser = argparse.ArgumentParser(f"python -m tests.benchmarks.{name}", description=purpose)
    parser.add_argument("--quick", action="store_true", help="less data, about a minute on 2 cores")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="repeat with N seeds (default 1)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    found = parser.parse_args(arguments)
    if found.seeds < 1:
        parser.error(f"--seeds is {found.seeds}: at least 1 is needed")
    quick = " --quick" if found.quick else ""
    # The file's name without its directory: a record must not depend on where it was made.
    command = f"python -m tests.benchmarks.{name}{quick} --seeds {found.seeds} --json {found.json.name}"
    return Options(found.quick, tuple(range(found.seeds)), found.json, command)


def report(options: Options, title: str, figures: Mapping[str, Figure], notes: Iterable[str] = ()) -> None:
    """Print the figures as a table and write them as JSON.

    Args:
        options: the command line.
        title: heading of the table.
        figures: name to value, in the order shown.
        notes: sentences printed below the table.
    """
    table = Table("figure", "value", title=title)
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note)
    record = {
        "figures": dict(figures),
        "machine": machine(),
        "versions": versions(),
        "seeds": list(options.seeds),
        "command": options.command,
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=2) + "\n")


def p99(values: Iterable[float]) -> float:
    """Return the 99th percentile."""
    return float(np.percentile(list(values), 99))
