"""The comparison's figures: means, spreads, the choice, table, record and plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cl_engine.bench.report import best_on_holdout, record, summarise, table, write_plots
from cl_engine.bench.run import MethodRun


def made_run(method: str, seed: int, last: Sequence[float], holdout: float) -> MethodRun:
    """Make a run of two sessions."""
    return MethodRun(
        method, seed, [[1.0], list(last)], [10, 10], holdout, [1.0, 3.0], 2048.0, 2**20, None, ["a"]
    )


def test_mean_spread_and_choice_by_hand() -> None:
    """A_T .5 and .7: mean .6, deviation .1414; the choice looks at the holdout and never takes joint."""
    runs = [
        made_run("ridge", 1, [0.4, 0.6], holdout=0.9),
        made_run("ridge", 2, [0.6, 0.8], holdout=0.7),
        made_run("ncm", 1, [1.0, 1.0], holdout=0.5),
        made_run("joint", 1, [1.0, 1.0], holdout=1.0),
    ]
    summary = summarise(runs)
    assert summary["ridge"]["a_t"] == pytest.approx({"mean": 0.6, "spread": 0.02**0.5})
    assert summary["ridge"]["a_bar"]["mean"] == pytest.approx(0.8)
    assert summary["ridge"]["forgetting"]["mean"] == pytest.approx(0.5)
    assert summary["ridge"]["bwt"]["mean"] == pytest.approx(-0.5)
    assert summary["ridge"]["session_seconds"] == {"mean": 2.0, "spread": 0.0}
    assert summary["ncm"]["a_t"] == {"mean": 1.0, "spread": 0.0}
    assert best_on_holdout(summary) == "ridge"
    assert best_on_holdout(summarise(runs[2:])) is None
    assert best_on_holdout(summarise(runs[3:])) is None
    shown = table("t", runs)
    cells = [next(iter(column.cells)) for column in shown.columns]
    assert cells[:3] == ["ridge", "60.0±14.1", "80.0±7.1"]
    assert cells[5:] == ["-", "80.0±14.1", "2.0", "2.0", "1"]
    written = record(runs, {"data": "d"}, "accrete bench d")
    assert written["seeds"] == [1, 2]
    assert {"figures", "machine", "versions", "seeds", "command"} <= set(written)
    assert json.loads(json.dumps(written))["runs"][0]["matrix"] == [[1.0], [0.4, 0.6]]


def test_plots_are_written(tmp_path: Path) -> None:
    """One of the curves, and one of the overlap where a method has class masks."""
    runs = [made_run("ridge", seed, [0.5, 0.6], 0.5) for seed in (1, 2)]
    runs.append(replace(runs[0], method="sgds", overlap=[[1.0, 0.2], [0.2, 1.0]], classes=["a", "b"]))
    paths = write_plots(tmp_path / "plots", "title", runs)
    assert [path.name for path in paths] == ["accuracy.png", "mask-overlap-sgds.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
