"""The cache of a long benchmark's finished parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.result_cache import ResultCache, measure_all, part_key

PARTS = {"a": {"seed": 0}, "b": {"seed": 1}}


class Measuring:
    """Counts what it was asked to measure."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, name: str) -> dict[str, Any]:
        """Return the length of the list so far."""
        self.asked.append(name)
        return {"number": len(self.asked)}


def test_a_second_run_measures_only_what_is_missing(tmp_path: Path) -> None:
    """What is in the file is not measured again; a part with another setting is."""
    measuring = Measuring()
    cache = ResultCache(tmp_path / "made" / "parts.jsonl")
    first = measure_all(cache, {"a": PARTS["a"]}, measuring)
    second = measure_all(cache, PARTS, measuring)
    assert measuring.asked == ["a", "b"]
    assert second == {"a": first["a"], "b": {"number": 2}}
    assert measure_all(cache, {"a": {"seed": 0, "epochs": 3}}, measuring) == {"a": {"number": 3}}
    assert [path.name for path in cache.path.parent.iterdir()] == ["parts.jsonl"]


def test_a_line_cut_short_is_measured_again(tmp_path: Path) -> None:
    """A kill while a result is written loses that result alone."""
    measuring = Measuring()
    cache = ResultCache(tmp_path / "parts.jsonl")
    measure_all(cache, PARTS, measuring)
    cache.path.write_text(cache.path.read_text()[:-30])
    assert list(cache.finished()) == [part_key(PARTS["a"])]
    assert measure_all(cache, PARTS, measuring) == {"a": {"number": 1}, "b": {"number": 3}}


def test_a_part_that_another_process_measures_is_left_to_it(tmp_path: Path) -> None:
    """Without waiting the answer is None while the claim is held; afterwards it is the other's result."""
    cache = ResultCache(tmp_path / "parts.jsonl")

    def meanwhile() -> dict[str, Any]:
        # A second cache object opens the lock file anew, as another process would.
        assert ResultCache(cache.path).measure(PARTS["a"], dict, wait=False) is None
        return {"mine": True}

    assert cache.measure(PARTS["a"], meanwhile, wait=True) == {"mine": True}
    assert ResultCache(cache.path).measure(PARTS["a"], dict, wait=False) == {"mine": True}
