"""The most memory that a piece of work takes."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil
import torch

INTERVAL_SECONDS = 0.02


class PeakMemory:
    """Measures the peak while a `with` block runs: of the GPU where one computes, else of the process.

    The process's memory is sampled, so a peak shorter than the interval can be missed; it includes what
    was there before, such as the backbone and the cached features.

    Attributes:
        nbytes: the highest value seen so far.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self.nbytes = 0

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._look()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.nbytes = torch.cuda.max_memory_allocated(self._device)
            return
        self._stop.set()
        self._thread.join()
        self._look()

    def _look(self) -> None:
        self.nbytes = max(self.nbytes, self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self._look()
