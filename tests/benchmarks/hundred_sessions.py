"""A hundred sessions in one network: QuickDraw-345 in threes, ExSSNeT, the task id given.

A session's seconds are CPU seconds of everything that makes it: room for it, both training phases, the
certificate over all sessions before, and coding its masks. All sessions have the same number of samples.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import fmean, median, pstdev
from typing import Any

import structlog
import torch
from torch import Tensor

from cl_engine.backbones.precision import choose_device
from cl_engine.masks.coding import encode, entropy_bytes
from cl_engine.supermask.capacity import capacity
from cl_engine.supermask.certificate import certify, verify
from cl_engine.supermask.network import MaskedNetwork
from cl_engine.supermask.settings import SupermaskSettings
from cl_engine.supermask.training import train_session
from tests.benchmarks.frame import Figure, parse_options, report
from tests.benchmarks.result_cache import ResultCache, measure_all
from tests.benchmarks.session_splits import SessionSplit, SplitStream

# The first and the last sessions that the ratio compares.
ENDS = 10


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    stream: SplitStream
    settings: SupermaskSettings


# Density 2 %: a hundred independent masks leave 0.98^100 = 13 % of the weights free.
FULL = Size(
    SplitStream("quickdraw345", 3, 100, train_per_class=70, test_per_class=30, width=0, size=28),
    SupermaskSettings(
        method="exssnet",
        density=0.02,
        allocation="erdos_renyi",
        epochs=20,
        mask_lr=0.003,
        weight_lr=0.01,
        batch_size=32,
    ),
)
QUICK = Size(replace(FULL.stream, sessions=20), FULL.settings.model_copy(update={"epochs": 4}))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse_options("hundred_sessions", "A hundred ExSSNeT sessions in one network.", arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    torch.set_num_threads(1)
    size = QUICK if options.quick else FULL
    parts: dict[str, dict[str, Any]] = {
        f"seed {seed}": {
            "seed": seed,
            "data": asdict(size.stream),
            "settings": size.settings.model_dump(mode="json", exclude_unset=True),
        }
        for seed in options.seeds
    }
    sessions = size.stream.load()

    def run(part: str) -> dict[str, Any]:
        result = learn(size, sessions, seed=parts[part]["seed"])
        print(f"{part}: a_t {fmean(result['accuracy']):.4f}, {sum(result['seconds']):.0f} s", flush=True)
        return result

    results = measure_all(ResultCache(options.json.with_suffix(".parts.jsonl")), parts, run)
    notes = [f"{size.stream.described()}, {size.settings.epochs} epochs in total"]
    report(options, "A hundred sessions in one network", summary(list(results.values())), notes)


def learn(size: Size, sessions: Sequence[SessionSplit], seed: int) -> dict[str, Any]:
    """Learn all sessions; then ask every one of them about its own test samples."""
    network = MaskedNetwork.create(size.stream.architecture, seed, choose_device("auto"))
    certificate: dict[str, Any] | None = None
    seconds: list[float] = []
    free: list[float] = []
    sizes: list[int] = []
    bounds: list[float] = []
    right_after: list[Tensor] = []
    for index, split in enumerate(sessions):
        started = time.process_time()
        network = train_session(network, split.train, split.train_labels, size.settings, seed=seed).network
        if certificate is not None:
            verify(network, certificate)
        certificate = certify(network, certificate)
        masks = network.masks(index)
        coded = encode(masks)
        seconds.append(time.process_time() - started)
        sizes.append(len(coded))
        bounds.append(entropy_bytes(masks))
        free.append(capacity(network, size.settings).free_share)
        right_after.append(network.logits(index, split.test))
    logits = [network.logits(index, split.test) for index, split in enumerate(sessions)]
    return {
        "accuracy": [
            (answer.argmax(dim=1) == split.test_labels).double().mean().item()
            for answer, split in zip(logits, sessions, strict=True)
        ],
        "bit_identical": all(torch.equal(a, b) for a, b in zip(right_after, logits, strict=True)),
        "seconds": seconds,
        "free_share": free,
        "bytes": sizes,
        "entropy_bytes": bounds,
    }


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Turn the seeds' results into the figures."""
    accuracies = [fmean(result["accuracy"]) for result in results]
    ratios = [median(result["seconds"][-ENDS:]) / median(result["seconds"][:ENDS]) for result in results]
    by_session = [fmean(session) for session in zip(*(r["accuracy"] for r in results), strict=True)]
    shares = [fmean(session) for session in zip(*(r["free_share"] for r in results), strict=True)]
    assert all(later <= earlier for earlier, later in pairwise(shares))
    return {
        "sessions": len(by_session),
        "a_t": fmean(accuracies),
        "a_t_spread": pstdev(accuracies),
        "bytes_over_entropy": sum(sum(r["bytes"]) for r in results)
        / sum(sum(r["entropy_bytes"]) for r in results),
        "bytes_per_session": fmean(size for result in results for size in result["bytes"]),
        "seconds_ratio_100_to_1": fmean(ratios),
        "seconds_per_session_first": fmean(median(r["seconds"][:ENDS]) for r in results),
        "seconds_per_session_last": fmean(median(r["seconds"][-ENDS:]) for r in results),
        "bit_identical": all(bool(result["bit_identical"]) for result in results),
        "free_share_left": shares[-1],
        "free_share_by_session": shares,
        "accuracy_by_session": by_session,
    }


if __name__ == "__main__":
    main()
