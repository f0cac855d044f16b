"""Labelled image sets: converted once to arrays in one safetensors file, loaded in a moment."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cl_engine.assets.archives import Members
from cl_engine.errors import AssetError

IMAGES = "images.safetensors"
CLASSES = "classes.json"

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
QUICKDRAW_TRAIN_PER_CLASS = 70
QUICKDRAW_SPLIT_SEED = 345

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelledImages:
    """A labelled image set with its training and its test part.

    Attributes:
        train_images: uint8 (N, H, W, 3), RGB.
        train_labels: int64 (N,), indices into `class_names`.
        test_images: uint8 (M, H, W, 3), RGB.
        test_labels: int64 (M,).
        class_names: one name per label.
    """

    train_images: Pixels
    train_labels: Labels
    test_images: Pixels
    test_labels: Labels
    class_names: tuple[str, ...]


def convert_cifar10(members: Members, directory: Path) -> None:
    """Convert the sprite sheets, 10,000 images a file and one image a row, and their label lists."""
    files = {PurePosixPath(name).name: content for name, content in members.items()}
    train = np.concatenate([_sprites(files[f"data_batch_{i}.png"]) for i in range(1, 6)])
    _save(
        directory,
        LabelledImages(
            train_images=train,
            train_labels=np.array(json.loads(files["train_lables.json"]), dtype=np.int64),
            test_images=_sprites(files["test_batch.png"]),
            test_labels=np.array(json.loads(files["test_lables.json"]), dtype=np.int64),
            class_names=CIFAR10_CLASSES,
        ),
    )


def convert_quickdraw(members: Members, directory: Path) -> None:
    """Convert the gzipped lists of sketches, one file a class, 784 numbers from 0 to 1 a line.

    The archive has 100 sketches a class and no test part. Ours is fixed for good: each class's
    sketches are permuted by one generator (`QUICKDRAW_SPLIT_SEED`, classes in sorted order); the
    first 70 are for training and the rest for testing.

    Raises:
        ValueError: a line is not a sketch of 28 x 28.
    """
    random = np.random.default_rng(QUICKDRAW_SPLIT_SEED)
    train: list[Pixels] = []
    test: list[Pixels] = []
    by_class = {PurePosixPath(name).name.removesuffix(".ndjson.gz"): c for name, c in members.items()}
    names = tuple(sorted(by_class))
    for name in names:
        lines = gzip.decompress(by_class[name]).splitlines()
        sketches = np.array([json.loads(line) for line in lines if line.strip()])
        pixels = np.rint(sketches * 255).astype(np.uint8).reshape(-1, 28, 28)
        order = random.permutation(len(pixels))
        train.append(pixels[order[:QUICKDRAW_TRAIN_PER_CLASS]])
        test.append(pixels[order[QUICKDRAW_TRAIN_PER_CLASS:]])
    _save(
        directory,
        LabelledImages(
            train_images=np.concatenate(train),
            train_labels=np.repeat(np.arange(len(names)), [len(part) for part in train]),
            test_images=np.concatenate(test),
            test_labels=np.repeat(np.arange(len(names)), [len(part) for part in test]),
            class_names=names,
        ),
    )


def convert_fashion_mnist(members: Members, directory: Path) -> None:
    """Convert the four gzipped IDX files.

    Raises:
        ValueError: a file is not IDX of unsigned bytes.
    """
    files = {PurePosixPath(name).name: _idx(content) for name, content in members.items()}
    _save(
        directory,
        LabelledImages(
            train_images=files["train-images-idx3-ubyte.gz"],
            train_labels=files["train-labels-idx1-ubyte.gz"].astype(np.int64),
            test_images=files["t10k-images-idx3-ubyte.gz"],
            test_labels=files["t10k-labels-idx1-ubyte.gz"].astype(np.int64),
            class_names=FASHION_MNIST_CLASSES,
        ),
    )


def load(directory: Path) -> LabelledImages:
    """Read a converted image set; grey images are repeated over the three channels.

    Raises:
        AssetError: the converted file is damaged.
    """
    try:
        with safe_open(directory / IMAGES, framework="numpy") as file:
            return LabelledImages(
                train_images=_coloured(file.get_tensor("train_images")),
                train_labels=file.get_tensor("train_labels"),
                test_images=_coloured(file.get_tensor("test_images")),
                test_labels=file.get_tensor("test_labels"),
                class_names=tuple(json.loads((directory / CLASSES).read_text())),
            )
    except SafetensorError as error:
        raise AssetError(f"{directory / IMAGES} is damaged: delete {directory}, fetch again") from error


def _sprites(png: bytes) -> Pixels:
    # Pillow's limit on pixels guards against hostile images; this content is pinned by its digest.
    with Image.open(io.BytesIO(png), formats=["PNG"]) as sheet:
        return np.asarray(sheet.convert("RGB")).reshape(-1, 32, 32, 3)


def _idx(compressed: bytes) -> Pixels:
    """Decode IDX: two zero bytes, the type (8: unsigned byte), the number of sides, the sides, the data."""
    content = gzip.decompress(compressed)
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"not an IDX file of unsigned bytes: it begins with {content[:3]!r}")
    rank = content[3]
    sides = np.frombuffer(content, dtype=">u4", count=rank, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank).reshape(sides.astype(int))


def _coloured(pixels: Pixels) -> Pixels:
    return np.repeat(pixels[..., np.newaxis], 3, axis=-1) if pixels.ndim == 3 else pixels


def _save(directory: Path, images: LabelledImages) -> None:
    for part, labels in (
        (images.train_images, images.train_labels),
        (images.test_images, images.test_labels),
    ):
        if len(part) != len(labels):
            raise ValueError(f"{len(part)} images have {len(labels)} labels")
        if set(np.unique(labels)) != set(range(len(images.class_names))):
            raise ValueError(f"the labels are not 0 to {len(images.class_names) - 1}")
    save_file(
        {
            "train_images": np.ascontiguousarray(images.train_images),
            "train_labels": images.train_labels,
            "test_images": np.ascontiguousarray(images.test_images),
            "test_labels": images.test_labels,
        },
        directory / IMAGES,
    )
    (directory / CLASSES).write_text(json.dumps(images.class_names))
