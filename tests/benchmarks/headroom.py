"""The headroom of class streams: joint adapters minus frozen multi-layer ridge, in points.

What no adapter can win even with all data at once, no mask can win session by session: a stream is worth
judging SGDS on only where this is several points. All classes are learnt at once; everything is judged on
training images that are held out, and joint training has the best of several settings by other held-out
images. The headroom of the streams that SGDS is judged on is in `sgds_ablation` and `sgds_families`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import structlog
from torch import Tensor

from cl_engine.bench.joint import JointSettings, train_jointly
from cl_engine.heads import RidgeStatistics
from cl_engine.heads.ridge import fold_of, ridge_scores
from cl_engine.samples import SampleSet
from tests.benchmarks.class_streams import ClassStream, OpenStream, open_stream
from tests.benchmarks.frame import Figure, parse_options, report
from tests.benchmarks.result_cache import ResultCache, measure_all

JOINT: tuple[Mapping[str, Any], ...] = (
    {"units": 32, "epochs": 8},
    {"units": 32, "epochs": 12, "learning_rate": 3e-4},
)


@dataclass(frozen=True)
class Candidate:
    """A stream that might have headroom, and the joint settings that are tried on it."""

    name: str
    stream: ClassStream
    joint: tuple[Mapping[str, Any], ...] = JOINT

    def described(self) -> dict[str, Any]:
        """Return everything that its result depends on."""
        return {"stream": asdict(self.stream), "joint": [dict(settings) for settings in self.joint]}


def _cifar10(size: int, train: int, held: int, judge: int) -> Candidate:
    """Put one together; sessions do not matter, everything is learnt at once."""
    stream = ClassStream("cifar10", size, 2, train, held, judge, judge="held-out", feature_blocks=2)
    return Candidate(f"cifar10_{size}px_{train}", stream)


FULL = (_cifar10(28, 100, 40, 100), _cifar10(56, 100, 40, 100), _cifar10(112, 40, 40, 50))
QUICK = (
    Candidate(
        "cifar10_28px_20", ClassStream("cifar10", 28, 2, 20, 10, 20, judge="held-out"), ({"epochs": 3},)
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse_options("headroom", "Joint adapters minus frozen multi-layer ridge.", arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    candidates = {c.name: c for c in (QUICK if options.quick else FULL)}
    parts = {
        f"{name} {seed}": candidate.described() | {"seed": seed}
        for name, candidate in candidates.items()
        for seed in options.seeds
    }

    def run(part: str) -> dict[str, Any]:
        name, seed = part.split()
        result = measure(candidates[name], int(seed))
        print(part, result, flush=True)
        return result

    results = measure_all(ResultCache(options.json.with_suffix(".parts.jsonl")), parts, run)
    figures: dict[str, Figure] = {}
    for name in candidates:
        for figure in ("ridge_a_t", "joint_a_t", "headroom_points"):
            values = [results[f"{name} {seed}"][figure] for seed in options.seeds]
            figures[f"{name}_{figure}"] = sum(values) / len(values)
    report(options, "Headroom", figures, ["name: data, image side, training images a class"])


def measure(candidate: Candidate, seed: int) -> dict[str, Any]:
    """Fit the frozen ridge and train joint adapters, on all classes at once."""
    started = time.perf_counter()
    opened = open_stream(candidate.stream)
    stream = opened.stream(seed)
    everything = stream.everything(len(stream.sessions) - 1)
    best, joint = -1.0, 0.0
    tried = {}
    for settings in candidate.joint:
        shared = {
            "feature_blocks": candidate.stream.feature_blocks,
            "adapter_blocks": candidate.stream.adapter_blocks,
        }
        model = train_jointly(
            opened.backbone, everything, JointSettings(**(shared | dict(settings))), opened.cache
        )
        held, judged = (
            _accuracy(model.predict(_base(opened, p)), p) for p in (opened.data.holdout, opened.data.test)
        )
        tried[str(dict(settings))] = held
        if held > best:
            best, joint = held, judged
    frozen = _frozen(opened)
    return {
        "ridge_a_t": frozen,
        "joint_a_t": joint,
        "headroom_points": 100 * (joint - frozen),
        "tried": tried,
        "seconds": time.perf_counter() - started,
    }


def _frozen(opened: OpenStream) -> float:
    """Return the accuracy of the ridge over the frozen multi-layer features."""
    train = opened.data.train
    features = _base(opened, train).features
    statistics = RidgeStatistics.empty(features.shape[1]).updated(
        features, train.labels, fold_of(train.ids), len(opened.data.class_names)
    )
    weights = statistics.solve(statistics.choose_strength()).float()
    test = opened.data.test
    return _accuracy(ridge_scores(_base(opened, test).features, weights).argmax(dim=1), test)


def _base(opened: OpenStream, samples: SampleSet) -> Any:
    return opened.cache.whole(samples, range(len(samples.labels)))


def _accuracy(predicted: Tensor, samples: SampleSet) -> float:
    return float((predicted == samples.labels).double().mean())


if __name__ == "__main__":
    main()
