"""SGDS, its ablations and the baselines on class streams: what each part is worth.

Every method reads the same frozen features and learns the same class orders. Results are judged on test
images; nothing was chosen by them. Finished runs are kept beside the JSON file, so that a killed benchmark
goes on where it stopped.

The headroom of a stream is the accuracy of joint adapters minus that of the frozen multi-layer ridge: what
there is to win. `bound_a_t` says how much of it any mask could give: a ridge, fitted with all old data, over
the subspaces of all sessions side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import structlog
import torch
from torch import Tensor

from cl_engine.bench.joint import JointSettings, train_jointly
from cl_engine.bench.run import run_method, shared_options
from cl_engine.generation import Generation
from cl_engine.learners import default_options
from cl_engine.learners.base import ProgressListener
from cl_engine.samples import SessionData
from cl_engine.sgds import SGDSLearner, SGDSSettings
from cl_engine.sgds.servable import SGDSServable
from cl_engine.sgds.strategy import Decide, Strategy, semantic_strategy
from tests.benchmarks.class_streams import ClassStream, OpenStream, open_stream
from tests.benchmarks.frame import Figure, Options, parse_options, report
from tests.benchmarks.result_cache import ResultCache, measure_all
from tests.benchmarks.subspace_analysis import analyse


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        method: `joint`, or one of the registry's.
        options: its settings beside those that all methods share.
        shuffled: decide by another class's prototype.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    shuffled: bool = False


JOINT = Variant("joint", {"units": 32, "epochs": 10})
FULL_SGDS = "sgds"
BASELINES: Mapping[str, Variant] = {
    "ridge": Variant("ridge"),
    "ridge_first_session": Variant("ridge", {"adapt_first_session": True}),
    # As trained, not half the way there.
    "ridge_first_session_whole": Variant("ridge", {"adapt_first_session": True, "first_session_scale": 1.0}),
    # Nor with the frozen features beside the adapted ones: as published.
    "ridge_first_session_only": Variant(
        "ridge", {"adapt_first_session": True, "first_session_scale": 1.0, "first_session_share": 1.0}
    ),
    "ranpac": Variant("ranpac", {"projection": 2000}),
    "ranpac_first_session": Variant("ranpac", {"projection": 2000, "adapt_first_session": True}),
    "slda": Variant("slda"),
    "ncm": Variant("ncm"),
    "finetune": Variant("finetune"),
    "joint": JOINT,
}
ABLATIONS: Mapping[str, Variant] = {
    FULL_SGDS: Variant("sgds"),
    "sgds_first_session": Variant("sgds", {"adapt_first_session": True}),
    "sgds_no_mask": Variant("sgds", {"mask": "none"}),
    "sgds_random_mask": Variant("sgds", {"mask": "random"}),
    "sgds_reuse_only": Variant("sgds", {"decision": "reuse"}),
    "sgds_allocate_only": Variant("sgds", {"decision": "allocate"}),
    "sgds_no_compaction": Variant("sgds", {"explore_epochs": 6, "compact_epochs": 0}),
    "sgds_inference_kwta": Variant("sgds", {"inference": "kwta"}),
    "sgds_inference_none": Variant("sgds", {"inference": "none"}),
    "sgds_shuffled_prototypes": Variant("sgds", shuffled=True),
    "sgds_exemplars_2": Variant("sgds", {"exemplars_per_class": 2}),
    "sgds_exemplars_5": Variant("sgds", {"exemplars_per_class": 5}),
    "sgds_exemplars_20": Variant("sgds", {"exemplars_per_class": 20}),
    "sgds_first_session_exemplars_2": Variant(
        "sgds", {"adapt_first_session": True, "exemplars_per_class": 2}
    ),
    "sgds_first_session_exemplars_5": Variant(
        "sgds", {"adapt_first_session": True, "exemplars_per_class": 5}
    ),
    "sgds_shared_units": Variant("sgds", {"exclusive_units": False, "borrow": False}),
}
RIDGES = ("ridge", "ridge_first_session", "ridge_first_session_whole", "ridge_first_session_only")
# What is measured on the streams that are too large for everything.
MAIN = (
    "ridge",
    "ridge_first_session",
    "ridge_first_session_only",
    "slda",
    "ncm",
    "finetune",
    "joint",
    FULL_SGDS,
    "sgds_first_session",
)
WITH_EXEMPLARS = ("sgds_first_session_exemplars_2", "sgds_first_session_exemplars_5")


@dataclass(frozen=True)
class Part:
    """A stream and what is measured on it.

    Attributes:
        prefix: put before its figures' names.
        stream: which.
        variants: names.
        bound: fit the side-by-side bound too; takes a pass under every session's subspace.
    """

    prefix: str
    stream: ClassStream
    variants: tuple[str, ...]
    bound: bool

    def bounded(self, variant: Variant) -> bool:
        """Say whether the bound is fitted on a variant's subspaces: on those of SGDS as it is."""
        return self.bound and variant == ABLATIONS[FULL_SGDS]

    def described(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Return everything that one result depends on."""
        joint = variant.method == "joint"
        defaults = JointSettings().model_dump() if joint else default_options(variant.method)
        return {
            "stream": asdict(self.stream),
            "method": variant.method,
            "options": defaults | dict(variant.options),
            "shuffled": variant.shuffled,
            "bound": self.bounded(variant),
            "seed": seed,
        }


EVERYTHING = (*BASELINES, *ABLATIONS)
CIFAR10 = ClassStream("cifar10", 56, 2, 40, 10, 100, feature_blocks=2)
CIFAR10_112 = ClassStream("cifar10", 112, 2, 40, 10, 50, feature_blocks=2)
QUICKDRAW345 = ClassStream("quickdraw345", 56, 15, 5, 2, 5, feature_blocks=2)
FULL = (
    Part("", CIFAR10, EVERYTHING, bound=True),
    Part("cifar10_112_", CIFAR10_112, MAIN, bound=True),
    Part("quickdraw345_", QUICKDRAW345, (*MAIN, *WITH_EXEMPLARS), bound=False),
)
QUICK = (
    Part(
        "",
        ClassStream("cifar10", 28, 2, 12, 6, 20, feature_blocks=2),
        ("ridge", "ridge_first_session", "joint", FULL_SGDS, "sgds_no_mask"),
        bound=True,
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse_options("sgds_ablation", "SGDS, its ablations and the baselines.", arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    parts = QUICK if options.quick else FULL
    finished = ResultCache(options.json.with_suffix(".parts.jsonl"))
    figures: dict[str, Figure] = {}
    for number, part in enumerate(parts, start=1):
        figures |= _figures(part, run_part(part, {**BASELINES, **ABLATIONS}, options, finished))
        # After each stream: the long ones come last.
        report(options, "SGDS and its ablations", figures, [described(p) for p in parts[:number]])


def run_part(
    part: Part, variants: Mapping[str, Variant], options: Options, finished: ResultCache
) -> dict[str, list[dict[str, Any]]]:
    """Measure every variant of a part with every seed, or take what is finished.

    Args:
        part: what to measure.
        variants: by name, at least those of the part.
        options: seeds.
        finished: results of earlier runs.

    Returns:
        For each variant, its results by seed.
    """
    opened: Callable[[], OpenStream] = cache(lambda: open_stream(part.stream))
    wanted = {f"{name} {seed}": (name, seed) for seed in options.seeds for name in part.variants}

    def run(key: str) -> dict[str, Any]:
        name, seed = wanted[key]
        result = measure(opened(), part, variants[name], seed)
        print(part.stream.data, key, result, flush=True)
        return result

    described = {key: part.described(variants[name], seed) for key, (name, seed) in wanted.items()}
    results = measure_all(finished, described, run)
    return {name: [results[f"{name} {seed}"] for seed in options.seeds] for name in part.variants}


def measure(opened: OpenStream, part: Part, variant: Variant, seed: int) -> dict[str, Any]:
    """Run one variant over one class order.

    Args:
        opened: data, backbone and the frozen pass.
        part: what was opened.
        variant: what is run.
        seed: of class order and learner.
    """
    stream = part.stream
    sessions = opened.stream(seed)
    shared = shared_options(variant.method, stream.feature_blocks, stream.adapter_blocks)
    options = shared | dict(variant.options)
    started = time.perf_counter()
    if variant.method == "joint":
        everything = sessions.everything(len(sessions.sessions) - 1)
        settings = JointSettings(**options)
        model = train_jointly(opened.backbone, everything, settings, opened.cache)
        test = opened.data.test
        base = opened.cache.whole(test, range(len(test.labels)))
        right = model.predict(base) == test.labels
        return {"a_t": float(right.double().mean()), "seconds": time.perf_counter() - started}
    learner = None
    if variant.method == "sgds":
        learner = _Recording(
            opened, SGDSSettings(**options), shuffled(seed) if variant.shuffled else semantic_strategy
        )
    run = run_method(variant.method, opened.backbone, sessions, options, opened.cache, learner=learner)
    figures = run.figures()
    result: dict[str, Any] = {name: figures[name] for name in ("a_t", "a_bar", "forgetting")}
    if learner is not None:
        assert learner.generation is not None
        servable = learner.servable(learner.generation)
        result |= analyse(opened, servable, sessions, bound=part.bounded(variant))
        strategy = learner.generation.evaluation["strategy"]
        result["overlap_similarity_correlation"] = strategy["overlap_similarity_correlation"]
        result["blends"] = learner.generation.tensors["blend"].tolist()
        result["families"] = len(result["blends"])
    return result | {"seconds": time.perf_counter() - started}


class _Recording:
    """An SGDS learner that remembers its last generation."""

    method = "sgds"

    def __init__(self, opened: OpenStream, settings: SGDSSettings, decide: Decide) -> None:
        self._learner = SGDSLearner(opened.backbone, settings, opened.cache, decide)
        self.generation: Generation | None = None

    def learn(
        self,
        data: SessionData,
        previous: Generation | None,
        *,
        checkpoint: Path | None = None,
        on_progress: ProgressListener | None = None,
    ) -> Generation:
        """Run one session; see `SGDSLearner.learn`."""
        self.generation = self._learner.learn(data, previous, checkpoint=checkpoint, on_progress=on_progress)
        return self.generation

    def servable(self, generation: Generation) -> SGDSServable:
        """Build what answers."""
        return self._learner.servable(generation)


def shuffled(seed: int) -> Decide:
    """Return a strategy in which every class decides by the prototype of another one."""

    def decide(
        new_prototypes: Tensor, old_prototypes: Tensor, *, temperature: float, count_normalised: bool
    ) -> Strategy:
        every = torch.cat([old_prototypes, new_prototypes])
        draw = torch.Generator().manual_seed(seed * 1_009 + len(old_prototypes))
        every = every[torch.randperm(len(every), generator=draw)]
        olds = len(old_prototypes)
        return semantic_strategy(
            every[olds:], every[:olds], temperature=temperature, count_normalised=count_normalised
        )

    return decide


def mean_and_spread(
    prefix: str, runs: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]
) -> dict[str, Figure]:
    """Return mean and standard deviation over the seeds of what each variant measured.

    Args:
        prefix: of the figures' names.
        runs: for each variant, its results by seed.
        names: of the figures, where a variant has them.
    """
    figures: dict[str, Figure] = {}
    for variant, results in runs.items():
        for name in names:
            values = [r[name] for r in results if name in r]
            if values:
                figures[f"{prefix}{variant}_{name}"] = fmean(values)
                figures[f"{prefix}{variant}_{name}_spread"] = pstdev(values)
    return figures


def _figures(part: Part, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Figure]:
    figures = mean_and_spread(part.prefix, runs, ("a_t", "a_bar", "forgetting"))
    for figure in (
        "overlap_similarity_correlation",
        "true_session_a_t",
        "base_true_session_a_t",
        "right_session_share",
        "bound_a_t",
    ):
        values = [r[figure] for r in runs[FULL_SGDS] if r.get(figure) is not None]
        if values:
            figures[f"{part.prefix}{figure}"] = fmean(values)
    frozen, joint = (fmean(r["a_t"] for r in runs[name]) for name in ("ridge", "joint"))
    figures[f"{part.prefix}headroom_points"] = 100 * (joint - frozen)
    baselines = [name for name in RIDGES if name in runs]
    strongest = max(fmean(r["a_t"] for r in runs[name]) for name in baselines)
    for name in runs:
        if name.startswith(FULL_SGDS):
            gain = fmean(r["a_t"] for r in runs[name]) - strongest
            figures[f"{part.prefix}{name}_gain_points"] = 100 * gain
    return figures


def described(part: Part) -> str:
    """Say in a line what a part's stream is."""
    s = part.stream
    judged = "test" if s.judge == "test" else "other training"
    return (
        f"{part.prefix or s.data + ' '}: {s.backbone}, B0-Inc{s.classes_per_session} at {s.size} px, "
        f"{s.train_per_class} training images a class, {s.judge_per_class} {judged} images a class, "
        f"features of the last {s.feature_blocks} blocks, adapters in the last {s.adapter_blocks}"
    )


if __name__ == "__main__":
    main()
