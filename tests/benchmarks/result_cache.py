"""Finished parts of a long benchmark, kept so that a killed run goes on and its summary can be re-made.

Several processes may run the same benchmark on one file at once: each part is measured by one of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Part = Mapping[str, Any]


class ResultCache:
    """JSON lines of finished parts, keyed by everything that decides their results.

    Args:
        path: the file; it and its directory are made when the first part is finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def finished(self) -> dict[str, dict[str, Any]]:
        """Read the results by key; a line that a kill cut short is left out."""
        if not self.path.exists():
            return {}
        found = {}
        for line in self.path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            found[entry["key"]] = entry["result"]
        return found

    def measure(self, part: Part, run: Callable[[], dict[str, Any]], *, wait: bool) -> dict[str, Any] | None:
        """Return a part's result, measured now unless it is there.

        Args:
            part: JSON-able description of what is measured, with every setting.
            run: measures it and returns JSON-able figures.
            wait: whether to wait for another process that is measuring the part; without it, the answer
                is then None.
        """
        key = part_key(part)
        with self._claimed(key, wait) as mine:
            if not mine:
                return None
            found = self.finished().get(key)
            if found is not None:
                return found
            result = run()
            # A line of its own even if a kill cut the last one short; blank lines are skipped above.
            line = "\n" + json.dumps({"key": key, "part": dict(part), "result": result}) + "\n"
            with self.path.open("a") as file:
                file.write(line)
            return result

    @contextmanager
    def _claimed(self, key: str, wait: bool) -> Iterator[bool]:
        # The lock goes with its process, so a killed one leaves no claim behind.
        path = self.path.with_name(f"{self.path.name}.{key[:16]}.lock")
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            try:
                yield True
            finally:
                # Whoever waits on the unlinked file finds the result in the cache.
                path.unlink(missing_ok=True)


def part_key(part: Part) -> str:
    """Name a part: the digest of its description."""
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()


def measure_all(
    cache: ResultCache, parts: Mapping[str, Part], run: Callable[[str], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Measure every part that is not finished yet, in order, and return all results by name.

    Parts that another process is measuring are left to it and waited for at the end.

    Args:
        cache: where results are kept.
        parts: name to description.
        run: measures the part of a name.
    """
    results: dict[str, dict[str, Any]] = {}
    for wait in (False, True):
        for name, part in parts.items():
            if name not in results:
                result = cache.measure(part, lambda name=name: run(name), wait=wait)  # type: ignore[misc]
                if result is not None:
                    results[name] = result
    return {name: results[name] for name in parts}
