"""The comparison for people (table, plots) and for the record (JSON)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cl_engine.bench.run import JOINT, MethodRun
from cl_engine.measurement import machine, versions

# Figure and heading of what is shown in per cent, with its spread.
SHARES = (
    ("a_t", "A_T"),
    ("a_bar", "A_bar"),
    ("forgetting", "forget"),
    ("bwt", "BWT"),
    ("fwt", "FWT"),
    ("holdout_a_t", "held-out"),
)
# Figure, heading, factor, decimals of what is shown as a mean; the record has its spread.
COSTS = (
    ("session_seconds", "s/sess", 1.0, 1),
    ("bytes_per_class", "KiB/cl", 1 / 1024, 1),
    ("peak_memory_bytes", "MiB", 1 / 2**20, 0),
)
LARGEST_LABELLED_MAP = 40


def summarise(runs: Sequence[MethodRun]) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean and spread (sample standard deviation, 0 for one seed) per method and figure."""
    summary = {}
    for method in dict.fromkeys(run.method for run in runs):
        figures = [run.figures() for run in runs if run.method == method]
        summary[method] = {
            name: {"mean": fmean(f[name] for f in figures), "spread": _spread([f[name] for f in figures])}
            for name in figures[0]
        }
    return summary


def best_on_holdout(summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str | None:
    """Name the method that the held-out samples favour, None where there is no choice.

    Joint training cannot be chosen.
    """
    able = {m: f["holdout_a_t"]["mean"] for m, f in summary.items() if m != JOINT}
    return max(able, key=lambda m: able[m]) if len(able) > 1 else None


def table(title: str, runs: Sequence[MethodRun]) -> Table:
    """Lay the summary out: accuracies in per cent, with several seeds as mean and spread; the best bold."""
    summary = summarise(runs)
    headings = [heading for _, heading in SHARES] + [heading for _, heading, _, _ in COSTS]
    result = Table(
        "method",
        *headings,
        title=title,
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    best = best_on_holdout(summary)
    several = len({run.seed for run in runs}) > 1
    for method, figures in summary.items():
        cells = []
        for name, _ in SHARES:
            if name not in figures:
                cells.append("-")
                continue
            mean, spread = (100 * figures[name][part] for part in ("mean", "spread"))
            cells.append(f"{mean:.1f}" + (f"±{spread:.1f}" if several else ""))
        for name, _, factor, decimals in COSTS:
            cells.append(f"{figures[name]['mean'] * factor:.{decimals}f}")
        result.add_row(method, *cells, style="bold" if method == best else None)
    return result


def record(runs: Sequence[MethodRun], question: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Return what is written as JSON.

    Args:
        runs: all of them.
        question: data, split, backbone and settings.
        command: how to run it again.
    """
    summary = summarise(runs)
    return {
        "figures": summary,
        "best_on_holdout": best_on_holdout(summary),
        "question": dict(question),
        "runs": [asdict(run) | {"figures": run.figures()} for run in runs],
        "machine": machine(),
        "versions": versions(),
        "seeds": sorted({run.seed for run in runs}),
        "command": command,
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write the record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_plots(directory: Path, title: str, runs: Sequence[MethodRun]) -> list[Path]:
    """Write the accuracy curves and, where a method has class masks, their overlap; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    figures = {"accuracy.png": _curves(title, runs)}
    for run in runs:
        if run.overlap is not None and f"mask-overlap-{run.method}.png" not in figures:
            figures[f"mask-overlap-{run.method}.png"] = _heat_map(run.overlap, run)
    paths = []
    for name, figure in figures.items():
        paths.append(directory / name)
        figure.savefig(paths[-1], dpi=120)
    return paths


def _curves(title: str, runs: Sequence[MethodRun]) -> Figure:
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(run.method for run in runs):
        curves = [run.curve() for run in runs if run.method == method]
        steps = range(1, len(curves[0]) + 1)
        (line,) = axes.plot(
            steps,
            [fmean(values) for values in zip(*curves, strict=True)],
            marker="o",
            linestyle="--" if method == JOINT else "-",
            label=method,
        )
        if len(curves) > 1:
            lowest, highest = zip(*((min(v), max(v)) for v in zip(*curves, strict=True)), strict=True)
            axes.fill_between(steps, lowest, highest, alpha=0.15, color=line.get_color())
    axes.set(xlabel="session", ylabel="accuracy on all classes so far", ylim=(0, 1.02), title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _heat_map(overlap: Sequence[Sequence[float]], run: MethodRun) -> Figure:
    figure = Figure(figsize=(6.5, 5.5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(overlap, vmin=0, vmax=1, cmap="viridis")
    figure.colorbar(image, label="shared share of two masks (Jaccard)")
    axes.set(title=f"Mask overlap, {run.method}, seed {run.seed}; classes in order of arrival")
    if len(run.classes) <= LARGEST_LABELLED_MAP:
        places = range(len(run.classes))
        axes.set_xticks(places, run.classes, rotation=90, fontsize=7)
        axes.set_yticks(places, run.classes, fontsize=7)
    return figure


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
