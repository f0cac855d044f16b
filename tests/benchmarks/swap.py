"""Swaps under constant load: no failed request, no answer of a generation that it does not name.

A client process keeps the service busy over HTTP while the live pointer moves between two real
generations: first with both resident (rollback and forward), then with each built from its tensors,
warmed up and published. Every answer is compared with what the generation it names answers alone.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
import torch

from cl_engine.learners import Servable, servable
from daemon.serving.payloads import Payload, decode
from tests.benchmarks.frame import Figure, Options, p99, parse_options, report
from tests.benchmarks.generations import teach
from tests.benchmarks.load import Answer, LoadProcess
from tests.support.http_service import RunningService, http_service

CLIENTS = 4
IMAGES = 16
MAX_BATCH = 8
ROUNDS = 10
# A batch's size changes the order of sums, so the same row may differ a little between batches: the
# tolerance is so many times the largest difference seen between batch sizes, and at least this.
TOLERANCE_FACTOR = 4.0
MIN_TOLERANCE = 1e-4
# On every image asked about the two generations differ by at least so many times the tolerance.
LEAST_DIFFERENCE = 10.0


@dataclass(frozen=True)
class Size:
    """How much is measured: swaps of each kind, seconds between them, and the generations' size."""

    pointer_swaps: int
    full_swaps: int
    interval: float
    image_size: int
    per_class: int


FULL = Size(pointer_swaps=1000, full_swaps=40, interval=0.05, image_size=112, per_class=40)
QUICK = Size(pointer_swaps=120, full_swaps=6, interval=0.03, image_size=56, per_class=12)


@dataclass(frozen=True)
class Truth:
    """What one generation answers alone, per image: class id to probability, and the best class."""

    scores: Sequence[dict[int, float]]
    best: Sequence[int]


@dataclass(frozen=True)
class Run:
    """One seed's measurement.

    Attributes:
        answers: by the window in which the request began: steady, pointer or full.
        requests, failed, wrong: counts over the whole load.
        pauses: seconds that the slot's lock was held, one per swap.
        tolerance, difference: see `truths` and `distance`.
    """

    answers: dict[str, list[Answer]]
    requests: int
    pauses: list[float]
    failed: int
    wrong: int
    tolerance: float
    difference: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse_options("swap", "Swap between two generations under constant load.", arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    size = QUICK if options.quick else FULL
    runs = [measure(seed, size) for seed in options.seeds]
    show(options, size, runs)


def measure(seed: int, size: Size) -> Run:
    """Swap under load with the generations of one seed."""
    # What is learnt does not matter here, only that the two generations differ: one epoch is enough.
    taught = teach(
        seed, sessions=2, image_size=size.image_size, per_class=size.per_class, images=2 * IMAGES, epochs=1
    )
    builders = [lambda g=g: servable(taught.backbone, g) for g in taught.generations]
    alone = [build() for build in builders]
    tolerance, candidates = truths(alone, taught.images)
    # An image whose two best classes are closer than the tolerance has no certain label, and one that both
    # generations answer alike could not tell a wrong generation from the right one.
    chosen = [
        i
        for i in range(len(taught.images))
        if all(_margin(t.scores[i]) > 2 * tolerance for t in candidates)
        and distance(*(t.scores[i] for t in candidates)) > LEAST_DIFFERENCE * tolerance
    ]
    chosen = chosen[:IMAGES]
    assert chosen, "no image has a clear label under both generations that differ on it"
    known = {
        s.digest: Truth([t.scores[i] for i in chosen], [t.best[i] for i in chosen])
        for s, t in zip(alone, candidates, strict=True)
    }
    first, second = known.values()
    difference = min(distance(a, b) for a, b in zip(first.scores, second.scores, strict=True))
    with http_service(max_batch_size=MAX_BATCH, max_resident_generations=2) as running:
        for number, one in enumerate(alone, 1):
            running.slot.publish(one, number)
        return _swap(
            running, builders, [taught.images[i] for i in chosen], known, size, tolerance, difference
        )


def _swap(
    running: RunningService,
    builders: Sequence[Callable[[], Servable]],
    images: Sequence[bytes],
    known: dict[str, Truth],
    size: Size,
    tolerance: float,
    difference: float,
) -> Run:
    load = LoadProcess(
        int(running.url.rsplit(":", 1)[1]), "/v2/models/s/infer", [body(i) for i in images], CLIENTS
    )
    load.start()
    slot, digests = running.slot, list(known)
    pauses: list[float] = []
    windows: list[tuple[str, float, float]] = []
    warm_up = decode(builders[0](), [Payload(image, "image/png") for image in images[:MAX_BATCH]])

    def window(name: str, steps: int, step: Callable[[int], None]) -> None:
        start = time.monotonic()
        for i in range(steps):
            step(i)
            time.sleep(max(0.0, start + (i + 1) * size.interval - time.monotonic()))
        windows.append((name, start, time.monotonic()))

    def pointer(i: int) -> None:
        pauses.append(slot.promote_resident(digests[i % 2]).pause_seconds)

    def full(i: int) -> None:
        aside = builders[i % 2]()
        aside.predict(warm_up)
        pauses.append(slot.publish(aside, i % 2 + 1).pause_seconds)

    # Steady and swapping take turns, so that other load on the machine favours neither.
    for _ in range(ROUNDS):
        window("steady", size.pointer_swaps // ROUNDS, lambda i: None)
        window("pointer", size.pointer_swaps // ROUNDS, pointer)
    window("full", size.full_swaps, full)
    answers = load.stop()
    assert slot.drain(10), "an old generation was never freed"
    wrong = sum(a.status == 200 and not is_right(a, known, tolerance) for a in answers)
    return Run(
        answers={
            name: [a for a in answers if any(n == name and s <= a.started < e for n, s, e in windows)]
            for name in ("steady", "pointer", "full")
        },
        requests=len(answers),
        pauses=pauses,
        failed=sum(a.status != 200 for a in answers),
        wrong=wrong,
        tolerance=tolerance,
        difference=difference,
    )


def truths(alone: Sequence[Servable], images: Sequence[bytes]) -> tuple[float, list[Truth]]:
    """Ask each generation alone, one by one and in batches of several sizes.

    Returns:
        The tolerance for scores, and what each generation answers.
    """
    spread, found = 0.0, []
    for one in alone:
        inputs = decode(one, [Payload(image, "image/png") for image in images])
        with torch.inference_mode():
            single = torch.cat([one.predict(row[None]).scores.float().cpu() for row in inputs])
            for rows in (2, 3, MAX_BATCH):
                together = [one.predict(part).scores.float().cpu() for part in inputs.split(rows)]
                spread = max(spread, float((torch.cat(together) - single).abs().max()))
        scores = [dict(zip(one.class_ids, row.tolist(), strict=True)) for row in single]
        found.append(Truth(scores, [max(row, key=row.__getitem__) for row in scores]))
    return max(MIN_TOLERANCE, TOLERANCE_FACTOR * spread), found


def is_right(answer: Answer, known: dict[str, Truth], tolerance: float) -> bool:
    """Whether an answer equals what the generation that it names answers alone."""
    content = json.loads(answer.body)
    truth = known.get(content["parameters"]["generation"])
    if truth is None:
        return False
    class_id, scores = (output["data"] for output in content["outputs"])
    expected = truth.scores[answer.index]
    close = len(scores) == len(expected) and np.allclose(
        scores, list(expected.values()), rtol=0, atol=tolerance
    )
    return bool(close and class_id == [truth.best[answer.index]])


def distance(one: dict[int, float], other: dict[int, float]) -> float:
    """Return the largest difference of a class's probability; a class that is missing has 0."""
    return max(abs(one.get(c, 0.0) - other.get(c, 0.0)) for c in one | other)


def _margin(scores: dict[int, float]) -> float:
    best, second = sorted(scores.values(), reverse=True)[:2]
    return best - second


def body(image: bytes) -> str:
    """Make the request for one image."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(image).decode()]}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "class_id"}, {"name": "scores"}]})


def show(options: Options, size: Size, runs: Sequence[Run]) -> None:
    """Summarise: counts add up over seeds, times and ratios are the worst seed's."""
    steady = [p99(a.seconds for a in r.answers["steady"]) for r in runs]

    def ratio(phase: str) -> float:
        return max(p99(a.seconds for a in r.answers[phase]) / s for r, s in zip(runs, steady, strict=True))

    figures: dict[str, Figure] = {
        "swaps": sum(len(r.pauses) for r in runs),
        "requests": sum(r.requests for r in runs),
        "failed": sum(r.failed for r in runs),
        "wrong_generation": sum(r.wrong for r in runs),
        "publish_pause_p99_seconds": max(p99(r.pauses) for r in runs),
        "publish_pause_max_seconds": max(max(r.pauses) for r in runs),
        "p99_ratio_swap_to_steady": ratio("pointer"),
        "p99_ratio_full_swap_to_steady": ratio("full"),
        "steady_p99_seconds": max(steady),
        "score_tolerance": max(r.tolerance for r in runs),
        "least_difference_of_generations": min(r.difference for r in runs),
    }
    notes = [
        f"{size.pointer_swaps} pointer moves and {size.full_swaps} builds with warm-up per seed, "
        f"{CLIENTS} clients; an answer is wrong if any score is off by more than score_tolerance.",
        "p99_ratio_full_swap_to_steady includes the computing that building and warming up takes.",
    ]
    report(options, "Swaps under constant load", figures, notes)


if __name__ == "__main__":
    main()
