"""Base features kept on disk between runs, one safetensors file for each class's part of the data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cl_engine.cached_features import CachedExtract
from cl_engine.features import BaseFeatures
from cl_engine.samples import SampleSet


def warm(
    cache: CachedExtract,
    samples: SampleSet,
    directory: Path | None,
    on_samples: Callable[[int], None] | None = None,
) -> int:
    """Fill a cache with the features of all samples, from files where they are there.

    Args:
        cache: to fill; its key names the files.
        samples: whose features.
        directory: of the files; None keeps nothing on disk.
        on_samples: called with the number of samples finished, class by class.

    Returns:
        How many samples had to be computed.
    """
    labels = samples.labels
    computed = 0
    for label in sorted(set(labels.tolist())):
        indices = (labels == label).nonzero().squeeze(1).tolist()
        ids = [samples.ids[i] for i in indices]
        path = None if directory is None else directory / f"{cache.key(ids)}.safetensors"
        found = None if path is None else _read(path)
        if found is not None:
            cache.add(ids, found)
        else:
            computed += len(ids)
            base = cache.whole(samples, indices)
            if path is not None:
                _write(path, base)
        if on_samples is not None:
            on_samples(len(ids))
    return computed


def _read(path: Path) -> BaseFeatures | None:
    """Read a file; one that is damaged costs the computation again and nothing else."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None
    return BaseFeatures(tensors["features"], tensors.get("tokens"))


def _write(path: Path, base: BaseFeatures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"features": base.features.cpu()}
    if base.tokens is not None:
        tensors["tokens"] = base.tokens.cpu()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, temporary)
    temporary.replace(path)
