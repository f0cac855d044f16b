"""What the demo prints and writes at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from cl_engine.measurement import machine, versions
from daemon.demo.measure import Measured, MethodResult


@dataclass(frozen=True)
class Summary:
    """The demo's figures; attribute names are the keys of the JSON.

    Attributes:
        a_t, a_bar, forgetting: of SGDS on the test images.
        ncm_a_t, finetune_a_t: the baselines' A_T on the same images and backbone.
        sessions: promoted sessions.
        requests, failed: of the client.
        swap_pause_median_seconds, swap_pause_max_seconds: how long no request could be admitted.
        first_correct_seconds: per class, from its first produced sample to its first correct answer.
        produced, stored, dead_lettered: samples.
        seconds: from the daemon's start to this summary.
        peak_rss_bytes: all processes together.
    """

    a_t: float
    a_bar: float
    forgetting: float
    ncm_a_t: float
    finetune_a_t: float
    sessions: int
    requests: int
    failed: int
    swap_pause_median_seconds: float
    swap_pause_max_seconds: float
    first_correct_seconds: Mapping[str, float]
    produced: int
    stored: int
    dead_lettered: int
    seconds: float
    peak_rss_bytes: int


def print_report(
    console: Console,
    summary: Summary,
    measured: Measured,
    sessions: Sequence[Sequence[str]],
    test_images: int,
) -> None:
    """Print the accuracy matrix, the comparison and the service's figures."""
    names = [" + ".join(classes) for classes in sessions]
    matrix = Table("after session", *names, title="Accuracy on test images of each session's classes (SGDS)")
    for t, row in enumerate(measured.sgds.matrix):
        matrix.add_row(str(t + 1), *("" if value is None else f"{value:.3f}" for value in row))
    console.print(matrix)

    methods = Table(
        "method", "A_T", "A_bar", "forgetting", title=f"On {test_images} test images, same backbone"
    )
    rows: Mapping[str, MethodResult] = {
        "SGDS (the daemon)": measured.sgds,
        "nearest class mean": measured.ncm,
        "naive fine-tuning": measured.finetune,
    }
    for name, result in rows.items():
        methods.add_row(name, f"{result.a_t:.4f}", f"{result.a_bar:.4f}", f"{result.forgetting:.4f}")
    console.print(methods)

    first = summary.first_correct_seconds
    service = Table("the service", "", title="While it learned")
    service.add_row("requests answered", str(summary.requests - summary.failed))
    service.add_row("requests failed", str(summary.failed))
    service.add_row(
        "swap pause",
        f"median {summary.swap_pause_median_seconds * 1e6:.1f} us, "
        f"worst {summary.swap_pause_max_seconds * 1e6:.1f} us",
    )
    service.add_row(
        "samples",
        f"{summary.produced} produced, {summary.stored} stored, {summary.dead_lettered} dead-lettered",
    )
    service.add_row(
        "first sample to first correct answer",
        ", ".join(f"{name} {seconds:.0f} s" for name, seconds in first.items()),
    )
    service.add_row("time", f"{summary.seconds:.0f} s")
    service.add_row("peak memory, all processes", f"{summary.peak_rss_bytes / 2**30:.2f} GiB")
    console.print(service)


def draw_plot(path: Path, measured: Measured) -> None:
    """Write a plot of the accuracy over all classes so far, per session and method."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, result in (
        ("SGDS", measured.sgds),
        ("nearest class mean", measured.ncm),
        ("naive fine-tuning", measured.finetune),
    ):
        curve = [_mean(row) for row in result.matrix]
        axes.plot(range(1, len(curve) + 1), curve, marker="o", label=name)
    axes.set(
        xlabel="session",
        ylabel="accuracy on all classes so far",
        ylim=(0, 1.02),
        title="CIFAR-10, class-incremental",
    )
    axes.set_xticks(range(1, len(measured.sgds.matrix) + 1))
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def write_summary(path: Path, summary: Summary, seed: int, command: str) -> None:
    """Write the summary as a benchmark record."""
    record: dict[str, Any] = {
        "figures": vars(summary) | {"first_correct_seconds": dict(summary.first_correct_seconds)},
        "machine": machine(),
        "versions": versions(),
        "seeds": [seed],
        "command": command,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


def _mean(row: Sequence[float | None]) -> float:
    known = [value for value in row if value is not None]
    return sum(known) / len(known) if known else 0.0
