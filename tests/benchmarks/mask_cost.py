"""What masks cost at inference, over a real frozen backbone.

ExSSNeT: the time of a batch on a generation of 100 sessions over that of one with a single session; nobody
tells a sample's session, so each batch asks the subnetworks its samples are routed to. SGDS: the time of
its inference modes over the frozen features alone, which every method needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean, median

import structlog
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from cl_engine import assets
from cl_engine.backbones import BlockwiseBackbone, load_backbone
from cl_engine.features import base_pass
from cl_engine.generation import Generation
from cl_engine.learners import create
from cl_engine.learners.base import Servable
from cl_engine.samples import SessionData, TensorSamples
from tests.benchmarks.frame import Figure, parse_options, report
from tests.benchmarks.generations import BACKBONE

CLASSES_PER_SESSION = 3
# As little training as gives a subnetwork: its weights do not change what a forward pass costs. One block's
# features, because choosing the ridge's strength takes time with the cube of their number.
EXSSNET = {"epochs": 2, "density": 0.02, "batch_size": 16, "feature_blocks": 1}
SGDS = {"explore_epochs": 1, "compact_epochs": 1, "feature_blocks": 1}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        sessions: of the larger ExSSNeT generation.
        sgds_sessions: of the SGDS generation.
        per_class: training sketches per class.
        image_size: pixels.
        batch: images in a timed batch, evenly from the larger generation's classes.
        repeats: timed batches of each kind.
    """

    sessions: int
    sgds_sessions: int
    per_class: int
    image_size: int
    batch: int
    repeats: int


FULL = Size(sessions=100, sgds_sessions=5, per_class=8, image_size=112, batch=32, repeats=40)
QUICK = Size(sessions=8, sgds_sessions=2, per_class=4, image_size=56, batch=16, repeats=10)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse_options("mask_cost", "Inference time that masks add.", arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    size = QUICK if options.quick else FULL
    backbone = load_backbone(BACKBONE, image_size=size.image_size)
    assert isinstance(backbone, BlockwiseBackbone)
    runs = [measure(backbone, size, seed) for seed in options.seeds]
    figures: dict[str, Figure] = {name: fmean(run[name] for run in runs) for name in runs[0]}
    figures["sessions"] = size.sessions
    notes = [
        f"{BACKBONE} at {size.image_size} px, QuickDraw-345 in threes, batches of {size.batch} sketches; "
        "medians of interleaved batches"
    ]
    report(options, "What masks cost", figures, notes)


def measure(backbone: BlockwiseBackbone, size: Size, seed: int) -> dict[str, float]:
    """Teach the generations and time them side by side."""
    exssnet = teach("exssnet", EXSSNET, backbone, size, size.sessions, seed)
    sgds = teach("sgds", SGDS, backbone, size, size.sgds_sessions, seed)[-1]
    asked, _ = sketches(size, range(size.sessions * CLASSES_PER_SESSION), 1, "test")
    batch = asked[torch.linspace(0, len(asked) - 1, size.batch).long()]
    one, hundred = (servable("exssnet", backbone, exssnet[i]) for i in (0, -1))
    modes = {
        mode: servable("sgds", backbone, replace(sgds, settings={**sgds.settings, "inference": mode}))
        for mode in ("none", "kwta", "prototype")
    }
    blocks = int(sgds.settings["feature_blocks"])

    def features() -> None:
        with torch.inference_mode():
            base_pass(backbone, batch, blocks, None)

    timed: dict[str, Callable[[], object]] = {
        "backbone": features,
        "exssnet_1": lambda: one.predict(batch),
        "exssnet_100": lambda: hundred.predict(batch),
        **{mode: lambda s=s: s.predict(batch) for mode, s in modes.items()},  # type: ignore[misc]
    }
    seconds = interleaved(timed, size.repeats)
    return {
        "exssnet_100_over_1": seconds["exssnet_100"] / seconds["exssnet_1"],
        "exssnet_1_over_backbone": seconds["exssnet_1"] / seconds["backbone"],
        "sgds_none_over_backbone": seconds["none"] / seconds["backbone"],
        "sgds_kwta_over_backbone": seconds["kwta"] / seconds["backbone"],
        "sgds_prototype_over_backbone": seconds["prototype"] / seconds["backbone"],
        "backbone_batch_seconds": seconds["backbone"],
    }


def interleaved(timed: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return each call's median wall time, one call of each kind after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in range(repeats + 2):
        for name, run in timed.items():
            started = time.perf_counter()
            run()
            # The first two rounds warm up.
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}


def teach(
    method: str,
    settings: Mapping[str, float],
    backbone: BlockwiseBackbone,
    size: Size,
    sessions: int,
    seed: int,
) -> list[Generation]:
    """Run the sessions of a method and return the first and the last generation."""
    learner = create(method, backbone, settings)
    generations: list[Generation] = []
    for session in range(sessions):
        new = range(session * CLASSES_PER_SESSION, (session + 1) * CLASSES_PER_SESSION)
        known = range(new.stop)
        made = learner.learn(
            SessionData(
                session=session,
                new_classes=tuple(new),
                train=TensorSamples(
                    *sketches(size, new, size.per_class, "train"),
                    tuple(f"{session}-{i}" for i in range(len(new) * size.per_class)),
                ),
                holdout=TensorSamples(*sketches(size, new, 2, "holdout")),
                class_labels={c: str(c) for c in known},
                seed=seed,
            ),
            generations[-1] if generations else None,
        )
        generations = [*generations[:1], made]
    return generations


def servable(method: str, backbone: BlockwiseBackbone, generation: Generation) -> Servable:
    """Make a generation ready to answer."""
    return create(method, backbone, {}).servable(generation)


def sketches(size: Size, classes: range, per_class: int, part: str) -> tuple[Tensor, Tensor]:
    """Load sketches as the backbone takes them: uint8 (N, 3, S, S), and labels int64 (N,)."""
    data = _quickdraw()
    chosen = (
        (data.test_images, data.test_labels) if part == "test" else (data.train_images, data.train_labels)
    )
    images, labels = torch.as_tensor(chosen[0]), torch.as_tensor(chosen[1]).long()
    start = size.per_class if part == "holdout" else 0
    rows = torch.cat([(labels == c).nonzero().flatten()[start : start + per_class] for c in classes])
    pixels = images[rows].permute(0, 3, 1, 2)
    side = [size.image_size, size.image_size]
    return resize(pixels, side, InterpolationMode.BILINEAR), labels[rows]


@cache
def _quickdraw() -> assets.LabelledImages:
    return assets.load_images("quickdraw345")


if __name__ == "__main__":
    main()
