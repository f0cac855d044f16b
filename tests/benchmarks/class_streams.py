"""The class streams of the method comparisons: which data, at which size, in which sessions."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from cl_engine.assets import cache_directory
from cl_engine.assets.catalogue import DINOV2_SMALL
from cl_engine.backbones import BlockwiseBackbone, load_backbone
from cl_engine.bench.data import BenchData, Subset, load_data
from cl_engine.bench.feature_files import warm
from cl_engine.bench.stream import Stream, split_classes
from cl_engine.cached_features import CachedExtract
from cl_engine.samples import SampleSet

FIRST_SEED = 1993


@dataclass(frozen=True)
class ClassStream:
    """One stream.

    Attributes:
        data: name in the asset catalogue, or several with `+` between them: then no session has classes of
            two of them, and the sessions come in an order that the seed draws.
        size: side of the images, pixels.
        classes_per_session: the N of B0-IncN.
        train_per_class: training samples a class.
        held_per_class: more training images a class, held out of training for the choices learners make.
        judge_per_class: samples a class that results are judged on.
        judge: `test` images, or as many more `held-out` training images, for every choice of settings.
        classes: at most how many classes of a data set, None for all.
        feature_blocks: last blocks that every method reads.
        adapter_blocks: last blocks that have an adapter, in every method that has any.
        backbone: name of the frozen network.
    """

    data: str
    size: int
    classes_per_session: int
    train_per_class: int
    held_per_class: int
    judge_per_class: int
    judge: str = "test"
    classes: int | None = None
    feature_blocks: int = 4
    adapter_blocks: int = 6
    backbone: str = DINOV2_SMALL


@dataclass(frozen=True)
class OpenStream:
    """A stream with its data and its backbone loaded, the frozen pass done.

    Attributes:
        backbone: the frozen network.
        data: training, held-out and judging samples.
        cache: the frozen pass over all of them.
        classes_per_session: the N of B0-IncN.
        sources: class ids of each data set.
    """

    backbone: BlockwiseBackbone
    data: BenchData
    cache: CachedExtract
    classes_per_session: int
    sources: tuple[range, ...]

    def stream(self, seed: int) -> Stream:
        """Return the sessions of one class order."""
        number = FIRST_SEED + seed
        sessions: list[tuple[int, ...]] = []
        for source in self.sources:
            if len(source) == self.classes_per_session:
                sessions.append(tuple(source))
                continue
            split = split_classes(len(source), 0, self.classes_per_session, number)
            sessions.extend(tuple(source[c] for c in own) for own in split)
        if len(self.sources) > 1:
            random.Random(number).shuffle(sessions)
        return Stream(self.data, tuple(sessions), number)


def open_stream(stream: ClassStream, features: Path | None = None) -> OpenStream:
    """Load data and backbone and run the frozen pass.

    Args:
        stream: which.
        features: where frozen features are kept between runs; beside the assets if None.
    """
    backbone = load_backbone(stream.backbone, image_size=stream.size)
    assert isinstance(backbone, BlockwiseBackbone)
    data, sources = load_sources(stream)
    first = backbone.depth - stream.adapter_blocks
    cache = CachedExtract(backbone, stream.feature_blocks, first)
    directory = cache_directory() / "features" if features is None else features
    for part in (data.train, data.holdout, data.test):
        warm(cache, part, directory)
    return OpenStream(backbone, data, cache, stream.classes_per_session, sources)


@dataclass(frozen=True)
class _Joined:
    """The samples of several data sets, one after another.

    Attributes:
        parts: the data sets.
        labels: class ids of the whole, int64 (N,).
    """

    parts: Sequence[SampleSet]
    labels: Tensor

    @cached_property
    def ids(self) -> Sequence[str]:
        """Sample ids."""
        return [name for part in self.parts for name in part.ids]

    def load(self, indices: Sequence[int]) -> Tensor:
        """Decode some samples."""
        ends = list(accumulate(len(part.labels) for part in self.parts))
        rows = []
        for index in indices:
            part = bisect_right(ends, index)
            rows.append(self.parts[part].load([index - (ends[part - 1] if part else 0)]))
        return torch.cat(rows)


def load_sources(stream: ClassStream) -> tuple[BenchData, tuple[range, ...]]:
    """Load the data sets and put them one after another, with the class ids of each."""
    found = [_one(replace(stream, data=name)) for name in stream.data.split("+")]
    starts = list(accumulate((len(data.class_names) for data in found), initial=0))
    sources = tuple(range(start, stop) for start, stop in pairwise(starts))
    if len(found) == 1:
        return found[0], sources

    def joined(part: Callable[[BenchData], SampleSet]) -> SampleSet:
        labels = [part(data).labels + start for data, start in zip(found, starts, strict=False)]
        return _Joined([part(data) for data in found], torch.cat(labels))

    names = tuple(f"{data.name}/{name}" for data in found for name in data.class_names)
    parts = (joined(lambda d: d.train), joined(lambda d: d.holdout), joined(lambda d: d.test))
    return BenchData(stream.data, names, *parts), sources


def _one(stream: ClassStream) -> BenchData:
    judged = stream.judge_per_class if stream.judge == "held-out" else 0
    held = stream.held_per_class + judged
    wanted = stream.train_per_class + held
    found = load_data(
        stream.data,
        image_size=stream.size,
        per_class=wanted,
        test_per_class=stream.judge_per_class,
        holdout_fraction=held / wanted,
    )
    classes = range(min(len(found.class_names), stream.classes or len(found.class_names)))
    train, holdout, test = (_of_classes(part, classes) for part in (found.train, found.holdout, found.test))
    if judged:
        choice = _first_of_each(holdout, stream.held_per_class)
        rest = sorted(set(range(len(holdout.labels))) - set(choice))
        holdout, test = Subset(holdout, choice), Subset(holdout, rest)
    return BenchData(found.name, found.class_names[: len(classes)], train, holdout, test)


def _of_classes(samples: SampleSet, classes: Sequence[int]) -> SampleSet:
    return Subset(samples, [i for i, label in enumerate(samples.labels.tolist()) if label in classes])


def _first_of_each(samples: SampleSet, count: int) -> list[int]:
    taken: dict[int, int] = {}
    chosen = []
    for index, label in enumerate(samples.labels.tolist()):
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= count:
            chosen.append(index)
    return chosen
