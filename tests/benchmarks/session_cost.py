"""What a session costs against retraining: SGDS learns the new classes, joint training everything so far.

Wall times are of the same adapters and the same number of epochs, over frozen features that are there
already: both pay for those alike. The ratio of session t should fall as 1/t.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean

import structlog

from cl_engine.bench.joint import JointSettings, train_jointly
from cl_engine.generation import Generation
from cl_engine.sgds import SGDSLearner, SGDSSettings
from tests.benchmarks.class_streams import ClassStream, OpenStream, open_stream
from tests.benchmarks.frame import Figure, parse_options, report

FULL = ClassStream("quickdraw345", 28, 3, 60, 8, 1, classes=30, feature_blocks=2)
QUICK = ClassStream("cifar10", 28, 2, 8, 4, 1, feature_blocks=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse_options("session_cost", "An SGDS session against joint retraining.", arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    stream = QUICK if options.quick else FULL
    opened = open_stream(stream)
    seeds = [measure(opened, stream, seed) for seed in options.seeds]
    incremental, joint = (
        [fmean(seconds) for seconds in zip(*(run[i] for run in seeds), strict=True)] for i in (0, 1)
    )
    ratios = [ours / theirs for ours, theirs in zip(incremental, joint, strict=True)]
    figures: dict[str, Figure] = {
        "incremental_over_joint": ratios,
        "incremental_seconds": incremental,
        "joint_seconds": joint,
        # 1 if the ratio falls exactly as 1/t.
        "last_ratio_times_sessions_over_first": ratios[-1] * len(ratios) / ratios[0],
    }
    note = (
        f"{stream.data} at {stream.size} px, {len(ratios)} sessions of {stream.classes_per_session} classes, "
        f"{stream.train_per_class} training images a class"
    )
    report(options, "Session cost", figures, [note])


def measure(opened: OpenStream, stream: ClassStream, seed: int) -> tuple[list[float], list[float]]:
    """Return the wall seconds of every session: incremental, and joint on all classes so far."""
    sessions = opened.stream(seed)
    settings = SGDSSettings(feature_blocks=stream.feature_blocks, adapter_blocks=stream.adapter_blocks)
    learner = SGDSLearner(opened.backbone, settings, opened.cache)
    jointly = JointSettings(
        feature_blocks=stream.feature_blocks,
        adapter_blocks=stream.adapter_blocks,
        units=settings.units_per_session,
        epochs=settings.explore_epochs + settings.compact_epochs,
        batch_size=settings.batch_size,
        # The adapters as trained: to try several scales would cost passes that no comparison needs.
        scales=(1.0,),
    )
    incremental, joint = [], []
    generation: Generation | None = None
    for index in range(len(sessions.sessions)):
        started = time.perf_counter()
        generation = learner.learn(sessions.session(index), generation)
        between = time.perf_counter()
        train_jointly(opened.backbone, sessions.everything(index), jointly, opened.cache)
        incremental.append(between - started)
        joint.append(time.perf_counter() - between)
    return incremental, joint


if __name__ == "__main__":
    main()
