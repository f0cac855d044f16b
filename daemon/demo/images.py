"""The demo's images: CIFAR-10, drawn by seed, as PNG files in memory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from cl_engine import assets
from cl_engine.assets import LabelledImages, OnProgress

CONTENT_TYPE = "image/png"


@dataclass(frozen=True)
class DemoImages:
    """Encoded images by class name, in class order.

    Attributes:
        train: produced to the stream.
        test: asked of the service and used for the accuracy matrix; never produced.
    """

    train: Mapping[str, Sequence[bytes]]
    test: Mapping[str, Sequence[bytes]]


def load_demo_images(
    samples_per_class: int, test_per_class: int, seed: int, on_progress: OnProgress | None = None
) -> DemoImages:
    """Draw images of every class from CIFAR-10's training and test part.

    Raises:
        AssetError: the data set cannot be fetched.
    """
    data = assets.load_images("cifar10", on_progress=on_progress)
    draw = np.random.default_rng(seed)
    train = _draw(data, data.train_images, data.train_labels, samples_per_class, draw)
    test = _draw(data, data.test_images, data.test_labels, test_per_class, draw)
    return DemoImages(train, test)


def _draw(
    data: LabelledImages,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    count: int,
    draw: np.random.Generator,
) -> dict[str, list[bytes]]:
    chosen = {}
    for index, name in enumerate(data.class_names):
        rows = draw.permutation(np.flatnonzero(labels == index))[:count]
        chosen[name] = [encode(images[row]) for row in rows]
    return chosen


def encode(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode an image (H, W, 3) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
