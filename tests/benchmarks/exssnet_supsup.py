"""ExSSNeT against SupSup and SSNeT: the same network, the same epochs in total, the task id given.

For each density, every method learns the same sessions one after the other in a narrow ResNet18; A_T is
the mean accuracy over the sessions' test images after the last one. After every session the test logits
of all earlier ones are compared, bit for bit, with what they were right after their own session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import numpy as np
import structlog
import torch
from torch import Tensor

from cl_engine import assets
from cl_engine.backbones.precision import choose_device, choose_dtype
from cl_engine.evaluation import last_accuracy
from cl_engine.supermask.architectures import ResNet18
from cl_engine.supermask.network import MaskedNetwork
from cl_engine.supermask.settings import Method, SupermaskSettings
from cl_engine.supermask.training import train_session
from tests.benchmarks.frame import Figure, parse_options, report

METHODS: tuple[Method, ...] = ("supsup", "ssnet", "exssnet")
# The paper's headline is a mean over masks that keep 2 to 10 % of the weights.
HEADLINE = (0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Stream:
    """Which data, how many classes a session, and how much of it.

    Attributes:
        data: name in the asset catalogue.
        classes_per_session: classes of each session, in the data set's order.
        sessions: how many; None for as many as there are classes for.
        train_per_class: training images per class, the first ones.
        test_per_class: test images per class, the first ones.
        epochs: of both phases together.
        channels: 1 for grey images.
    """

    data: str
    classes_per_session: int
    sessions: int | None
    train_per_class: int
    test_per_class: int
    epochs: int
    channels: int


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    streams: tuple[Stream, ...]
    densities: tuple[float, ...]
    width: int


FULL = Size(
    streams=(
        Stream("cifar10", 2, None, train_per_class=2000, test_per_class=1000, epochs=20, channels=3),
        Stream("quickdraw345", 15, None, train_per_class=70, test_per_class=30, epochs=20, channels=1),
    ),
    densities=(0.02, 0.05, 0.1, 0.3, 0.5),
    width=20,
)
QUICK = Size(
    streams=(Stream("cifar10", 2, 3, train_per_class=200, test_per_class=200, epochs=10, channels=3),),
    densities=(0.1,),
    width=8,
)

Session = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Run:
    """One method at one density with one seed."""

    a_t: float
    bit_identical: bool


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse_options("exssnet_supsup", "ExSSNeT against SupSup at several densities.", arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    torch.backends.cudnn.deterministic = True
    size = QUICK if options.quick else FULL
    figures: dict[str, Figure] = {"densities": list(size.densities)}
    identical = True
    for stream in size.streams:
        prefix = "" if stream is size.streams[0] else f"{stream.data}_"
        sessions = split(stream)
        runs = {
            (method, density): [
                measure(sessions, stream, method, density, size.width, s) for s in options.seeds
            ]
            for density in size.densities
            for method in METHODS
        }
        for method in METHODS:
            scores = [[run.a_t for run in runs[method, density]] for density in size.densities]
            figures[f"{prefix}{method}_a_t"] = [fmean(values) for values in scores]
            figures[f"{prefix}{method}_a_t_spread"] = [pstdev(values) for values in scores]
        gains = {
            density: 100
            * (fmean(r.a_t for r in runs["exssnet", density]) - fmean(r.a_t for r in runs["supsup", density]))
            for density in size.densities
        }
        figures[f"{prefix}gain_points"] = list(gains.values())
        figures[f"{prefix}headline_gain_points"] = fmean(g for d, g in gains.items() if d in HEADLINE)
        identical &= all(r.bit_identical for (m, _), group in runs.items() if m != "ssnet" for r in group)
    figures["bit_identical"] = identical
    report(options, "ExSSNeT against SupSup", figures, [_described(stream) for stream in size.streams])


def split(stream: Stream) -> list[Session]:
    """Divide a data set into sessions: training images and labels, test images and labels of each."""
    found = assets.load_images(stream.data)
    device = choose_device("auto")
    count = len(found.class_names) // stream.classes_per_session
    sessions = []
    for session in range(stream.sessions or count):
        first = session * stream.classes_per_session
        classes = range(first, first + stream.classes_per_session)
        train = [np.flatnonzero(found.train_labels == c)[: stream.train_per_class] for c in classes]
        test = [np.flatnonzero(found.test_labels == c)[: stream.test_per_class] for c in classes]
        sessions.append(
            (
                _images(found.train_images[np.concatenate(train)], stream.channels).to(device),
                torch.arange(len(train)).repeat_interleave(torch.tensor([len(rows) for rows in train])),
                _images(found.test_images[np.concatenate(test)], stream.channels).to(device),
                torch.arange(len(test)).repeat_interleave(torch.tensor([len(rows) for rows in test])),
            )
        )
    return sessions


def measure(
    sessions: Sequence[Session], stream: Stream, method: Method, density: float, width: int, seed: int
) -> Run:
    """Learn all sessions in order and compare all earlier logits after each."""
    device = sessions[0][0].device
    settings = SupermaskSettings(
        method=method,
        density=density,
        epochs=stream.epochs,
        precision="bfloat16" if choose_dtype("auto", device) == torch.bfloat16 else "float32",
    )
    network = MaskedNetwork.create(
        lambda: ResNet18(stream.classes_per_session, width=width, channels=stream.channels), seed, device
    )
    right_after: list[Tensor] = []
    matrix: list[list[float]] = []
    identical = True
    for images, labels, test, _ in sessions:
        network = train_session(network, images, labels, settings, seed=seed).network
        right_after.append(network.logits(len(right_after), test))
        now = [network.logits(i, sessions[i][2]) for i in range(len(right_after))]
        identical &= all(torch.equal(before, after) for before, after in zip(right_after, now, strict=True))
        matrix.append(
            [
                (logits.argmax(dim=1) == session[3]).double().mean().item()
                for logits, session in zip(now, sessions, strict=False)
            ]
        )
    return Run(last_accuracy(matrix), identical)


def _images(pixels: np.ndarray, channels: int) -> Tensor:
    """Turn uint8 images (N, H, W, 3) into float32 (N, channels, H, W) between -2 and 2."""
    tensor = torch.from_numpy(pixels[..., :channels].copy()).permute(0, 3, 1, 2).float()
    return (tensor / 255 - 0.5) / 0.25


def _described(stream: Stream) -> str:
    return (
        f"{stream.data}: sessions of {stream.classes_per_session} classes, up to {stream.train_per_class} "
        f"training and {stream.test_per_class} test images a class, {stream.epochs} epochs in total"
    )


if __name__ == "__main__":
    main()
