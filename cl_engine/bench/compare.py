"""Run the whole comparison: every method on every seed's stream, over features computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cl_engine.backbones import BlockwiseBackbone
from cl_engine.backbones.blockwise import adaptable_blocks
from cl_engine.bench.data import BenchData
from cl_engine.bench.feature_files import warm
from cl_engine.bench.joint import JointSettings
from cl_engine.bench.run import JOINT, MethodRun, method_names, reads_tokens, run_method, shared_options
from cl_engine.bench.stream import Stream, split_classes
from cl_engine.cached_features import CachedExtract
from cl_engine.learners.registry import check_options


@dataclass(frozen=True)
class Question:
    """What is compared.

    Attributes:
        methods: names, in the order of the table.
        seeds: of the class order and the learners.
        base: classes of the first session; 0: as many as any other.
        increment: classes of each session.
        feature_blocks: last blocks that every method reads.
        adapter_blocks: last blocks that have an adapter, in every method that has any.
        options: further settings by method.
        transfer: whether forward transfer is measured, which learns every session twice.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (1993,)
    base: int = 0
    increment: int = 2
    feature_blocks: int = 4
    adapter_blocks: int = 6
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    transfer: bool = False

    def options_of(self, method: str) -> dict[str, Any]:
        """Return a method's settings: the shared ones, then its own."""
        shared = shared_options(method, self.feature_blocks, self.adapter_blocks)
        return shared | dict(self.options.get(method, {}))

    def check(self) -> None:
        """Check methods and settings before anything is computed.

        Raises:
            ValueError: naming the first that is wrong.
        """
        if not self.methods or not self.seeds:
            raise ValueError("methods and seeds must not be empty")
        for method in (*self.methods, *self.options):
            if method not in method_names():
                raise ValueError(f"method {method!r} is not one of {', '.join(method_names())}")
        idle = set(self.options) - set(self.methods)
        if idle:
            raise ValueError(f"options for {sorted(idle)}, which methods {list(self.methods)} leave out")
        for method, options in self.options.items():
            fixed = {"feature_blocks", "adapter_blocks"} & set(options)
            if fixed:
                raise ValueError(f"{method}: {sorted(fixed)} are the same for all methods: set them for all")
        for method in self.methods:
            if method == JOINT:
                JointSettings(**self.options_of(method))
            else:
                check_options(method, self.options_of(method))


@dataclass(frozen=True)
class Listener:
    """Who is told how far it is: samples of the frozen pass, then sessions, and each method's end."""

    on_samples: Callable[[int], None]
    on_session: Callable[[str, int, int], None]
    on_run: Callable[[MethodRun], None] = lambda _: None


def compare(
    question: Question,
    data: BenchData,
    backbone: BlockwiseBackbone,
    *,
    feature_directory: Path | None = None,
    listener: Listener | None = None,
) -> list[MethodRun]:
    """Run every method with every seed.

    Args:
        question: what is compared.
        data: the data set.
        backbone: the frozen network.
        feature_directory: where features are kept between runs; None keeps them in memory alone.
        listener: for progress bars; `on_session` gets method, seed and session.

    Raises:
        ValueError: a wrong method, setting or split.
        LearningError: a method cannot go on.
    """
    question.check()
    splits = {
        seed: split_classes(len(data.class_names), question.base, question.increment, seed)
        for seed in question.seeds
    }
    adapters = any(reads_tokens(method, question.options_of(method)) for method in question.methods)
    first = backbone.depth - question.adapter_blocks
    if not 0 <= first < backbone.depth or not 0 < question.feature_blocks <= backbone.depth:
        raise ValueError(
            f"feature_blocks {question.feature_blocks} and adapter_blocks {question.adapter_blocks} must be "
            f"1 to {backbone.depth}, the backbone's blocks"
        )
    most = adaptable_blocks(backbone)
    if adapters and question.adapter_blocks > most:
        raise ValueError(
            f"adapter_blocks is {question.adapter_blocks}, backbone {backbone.id} has {most} last blocks of "
            f"one width, where adapters fit: set adapter_blocks to {most}"
        )
    cache = CachedExtract(backbone, question.feature_blocks, first if adapters else None)
    for part in (data.train, data.holdout, data.test):
        warm(cache, part, feature_directory, None if listener is None else listener.on_samples)
    runs = []
    for seed, sessions in splits.items():
        stream = Stream(data, sessions, seed)
        for method in question.methods:

            def tell(session: int, method: str = method, seed: int = seed) -> None:
                if listener is not None:
                    listener.on_session(method, seed, session)

            run = run_method(
                method,
                backbone,
                stream,
                question.options_of(method),
                cache,
                on_session=tell,
                transfer=question.transfer,
            )
            runs.append(run)
            if listener is not None:
                listener.on_run(run)
    return runs
