"""Real data in sessions, for the supermask benchmarks: the paper's vision and text settings, in small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from cl_engine import assets
from cl_engine.supermask.architectures import Architecture, LeNet, ResNet18, TextCNN
from cl_engine.text_encoder import load_text_encoder


@dataclass(frozen=True)
class SessionSplit:
    """One session's samples; labels count from 0 within the session.

    Attributes:
        train: inputs as the architecture takes them, float32 or float16 (N, ...).
        train_labels: int64 (N,).
        test: the same, (M, ...).
        test_labels: int64 (M,).
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class SplitStream:
    """A data set in sessions, and the network that learns it.

    Attributes:
        name: prefix of the stream's figures.
        classes_per_session: classes of each session, in the data set's order.
        sessions: how many sessions.
        train_per_class: training samples per class, the first ones of the training part.
        test_per_class: test samples per class, the first ones of the test part.
        width: channels of the ResNet18's first stage, or filters per kernel of the text CNN; unused by LeNet.
        size: pixels along an image's side after average pooling, or tokens a text is cut to.
    """

    name: str
    classes_per_session: int
    sessions: int
    train_per_class: int
    test_per_class: int
    width: int
    size: int

    def load(self) -> list[SessionSplit]:
        """Load the samples of every session, from the asset catalogue."""
        if self.name == ROTATED:
            return _rotated(self)
        inputs, labels, test, test_labels = _SOURCES[self.name](self)
        made = []
        for session in range(self.sessions):
            first = session * self.classes_per_session
            classes = range(first, first + self.classes_per_session)
            made.append(
                SessionSplit(
                    *_rows(inputs, labels, classes, self.train_per_class),
                    *_rows(test, test_labels, classes, self.test_per_class),
                )
            )
        return made

    def architecture(self) -> Architecture:
        """Build the network."""
        if self.name == "cifar10":
            return ResNet18(self.classes_per_session, width=self.width)
        if self.name in ("quickdraw345", ROTATED):
            return LeNet(self.classes_per_session)
        return TextCNN(STATE_WIDTH, self.classes_per_session, filters=self.width)

    def described(self) -> str:
        """Say in a sentence what is learnt and by which network."""
        network = {
            "cifar10": f"ResNet18 of width {self.width} at {self.size} px",
            "quickdraw345": "LeNet 784-300-100 at 28 px",
            ROTATED: f"other images each, rotated by {DEGREES} degrees more, LeNet 784-300-100 at 28 px",
            "clinc150": f"text CNN of 3 x {self.width} filters over {self.size} frozen MiniLM states",
        }[self.name]
        return (
            f"{self.name}: {self.sessions} sessions of {self.classes_per_session} classes, up to "
            f"{self.train_per_class} training and {self.test_per_class} test samples a class, {network}"
        )


STATE_WIDTH = 384
# Every session has the same classes in another position: sessions that are as related as can be.
ROTATED = "rotated_fashion_mnist"
DEGREES = 15

_Part = tuple[Tensor, np.ndarray, Tensor, np.ndarray]


def _images(stream: SplitStream) -> _Part:
    found = assets.load_images(stream.name)
    train_labels, test_labels = found.train_labels, found.test_labels
    wanted = stream.classes_per_session * stream.sessions
    train = _first(train_labels, wanted, stream.train_per_class)
    test = _first(test_labels, wanted, stream.test_per_class)
    return (
        _pixels(found.train_images[train], stream),
        train_labels[train],
        _pixels(found.test_images[test], stream),
        test_labels[test],
    )


def _texts(stream: SplitStream) -> _Part:
    found = assets.load_texts(stream.name)
    wanted = stream.classes_per_session * stream.sessions
    train = _first(found.train_labels, wanted, stream.train_per_class)
    test = _first(found.test_labels, wanted, stream.test_per_class)
    return (
        _states([found.train_texts[row] for row in train], stream.size),
        found.train_labels[train],
        _states([found.test_texts[row] for row in test], stream.size),
        found.test_labels[test],
    )


_SOURCES: dict[str, Callable[[SplitStream], _Part]] = {
    "cifar10": _images,
    "quickdraw345": _images,
    "clinc150": _texts,
}


def _rotated(stream: SplitStream) -> list[SessionSplit]:
    """Give each session the next training images of every class, and turn them and the test images."""
    found = assets.load_images("fashion_mnist")
    test = _first(found.test_labels, stream.classes_per_session, stream.test_per_class)
    made = []
    for session in range(stream.sessions):
        begin, angle = session * stream.train_per_class, float(session * DEGREES)
        train = np.concatenate(
            [
                np.flatnonzero(found.train_labels == label)[begin : begin + stream.train_per_class]
                for label in range(stream.classes_per_session)
            ]
        )
        pictures = [
            rotate(_grey(images), angle, InterpolationMode.BILINEAR, fill=[-2.0]).flatten(1)
            for images in (found.train_images[train], found.test_images[test])
        ]
        labels = [
            torch.from_numpy(labels).long() for labels in (found.train_labels[train], found.test_labels[test])
        ]
        made.append(SessionSplit(pictures[0], labels[0], pictures[1], labels[1]))
    return made


def _first(labels: np.ndarray, classes: int, per_class: int) -> np.ndarray:
    """Return the rows of the first samples of each class."""
    return np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in range(classes)])


def _rows(inputs: Tensor, labels: np.ndarray, classes: range, per_class: int) -> tuple[Tensor, Tensor]:
    rows = np.flatnonzero(np.isin(labels, classes))
    assert len(rows) <= per_class * len(classes)
    chosen = inputs[torch.from_numpy(rows)]
    if chosen.ndim == 4:
        # Convolutions on a CPU are a third faster in this layout.
        chosen = chosen.contiguous(memory_format=torch.channels_last)
    return chosen, torch.from_numpy(labels[rows] - classes.start).long()


def _grey(images: np.ndarray) -> Tensor:
    """Turn uint8 images (N, H, W, 3) into float32 (N, 1, H, W) between -2 and 2."""
    return ((torch.from_numpy(images[..., :1].copy()).float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)


def _pixels(images: np.ndarray, stream: SplitStream) -> Tensor:
    """Turn uint8 images (N, H, W, 3) into float32 between -2 and 2: grey ones flat, (N, H * W)."""
    if stream.name == "quickdraw345":
        return _grey(images).flatten(1)
    tensor = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    return avg_pool2d(tensor, tensor.shape[-1] // stream.size)


@torch.inference_mode()
def _states(texts: Sequence[str], length: int) -> Tensor:
    """Run the frozen encoder: token states (N, length, 384), zero where a text has ended, float16."""
    encoder = load_text_encoder(max_tokens=length, dtype="float32")
    assert encoder.width == STATE_WIDTH
    made = []
    for start in range(0, len(texts), 256):
        ids = encoder.tokenise(texts[start : start + 256])
        # Half precision for the keeping: 12 MB a thousand texts of 16 tokens instead of 25.
        made.append(encoder.last(encoder.embed(ids), 0).half().cpu())
    return torch.cat(made)
