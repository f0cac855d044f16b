"""What executes a generation in the serving process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from cl_engine.errors import EngineError
from cl_engine.generation import GenerationDirectory
from cl_engine.learners import Servable, servable
from daemon.backbone import load
from daemon.errors import SwapError
from daemon.metrics import Metrics
from daemon.settings import BackboneSettings, LimitSettings


@dataclass(frozen=True)
class RuntimeFacts:
    """What a runtime is, for status pages and logs."""

    name: str
    backbone: str
    device: str
    dtype: str


class Runtime(Protocol):
    """Builds servables from generations on disk."""

    @property
    def facts(self) -> RuntimeFacts:
        """What it is."""
        ...

    def build(self, stream: str, digest: str) -> Servable:
        """Load a generation, verify it completely and warm it up.

        Raises:
            SwapError: it cannot be loaded or does not belong to the backbone.
        """
        ...


class TorchRuntime:
    """Runs generations with torch, over one resident frozen backbone.

    Args:
        settings: which backbone and where.
        generations: directory of the generations.
        metrics: for the durations of build and warm-up.
        limits: bounds on request payloads.
    """

    def __init__(
        self, settings: BackboneSettings, generations: Path, metrics: Metrics, limits: LimitSettings
    ) -> None:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.backbone = load(settings, limits)
        self._directory = GenerationDirectory(generations)
        self._metrics = metrics

    @property
    def facts(self) -> RuntimeFacts:
        """What it is."""
        return RuntimeFacts(
            "torch",
            self.backbone.id,
            str(self.backbone.device),
            str(self.backbone.dtype).removeprefix("torch."),
        )

    def build(self, stream: str, digest: str) -> Servable:
        """Load, verify and warm up; see `Runtime.build`."""
        started = time.perf_counter()
        try:
            ready = servable(self.backbone, self._directory.load(digest))
        except (EngineError, OSError) as error:
            raise SwapError(f"generation {digest} cannot be made ready: {error}") from error
        built = time.perf_counter()
        # Batches of one and of several take different kernels; both are run before anyone waits for them.
        for rows in (1, 2):
            ready.predict(self.backbone.blank(rows))
        warm = time.perf_counter()
        self._metrics.swap_duration.labels(stream, "build").observe(built - started)
        self._metrics.swap_duration.labels(stream, "warmup").observe(warm - built)
        return ready
