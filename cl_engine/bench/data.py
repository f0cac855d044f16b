"""What a comparison runs on: a data set of the catalogue, or a directory of images or texts.

The samples of each class are put in one fixed order by a hash of their ids, whatever the seed, so that
reruns and other seeds find their features in the cache. A part of the training samples, chosen by another
hash, is held out of training for every choice that a learner makes; the test samples are for the accuracy
matrix alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cl_engine import assets
from cl_engine.errors import InputError
from cl_engine.images import open_image, square
from cl_engine.samples import SampleSet
from cl_engine.text_encoder import FrozenTextEncoder

Decode = Callable[[bytes, str], Tensor]

IMAGE_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
}
TEXT_TYPES = {".txt": "text/plain"}
# Share of a directory's files that become test data where it has no test part of its own.
TEST_SHARE = 0.2


@dataclass(frozen=True)
class ArraySamples:
    """Images that lie decoded in memory, scaled when asked for.

    Attributes:
        images: uint8 (N, H, W, 3).
        labels: int64 (N,).
        ids: one per image.
        size: side of what `load` returns, pixels.
    """

    images: npt.NDArray[np.uint8]
    labels: Tensor
    ids: Sequence[str]
    size: int

    def load(self, indices: Sequence[int]) -> Tensor:
        """Scale some images: uint8 (n, 3, S, S)."""
        return torch.stack([square(Image.fromarray(self.images[i]), self.size) for i in indices])


@dataclass(frozen=True)
class TextSamples:
    """Texts in memory, tokenised when asked for.

    Attributes:
        texts: N texts.
        labels: int64 (N,).
        ids: one per text.
        encoder: whose tokeniser it is.
    """

    texts: Sequence[str]
    labels: Tensor
    ids: Sequence[str]
    encoder: FrozenTextEncoder

    def load(self, indices: Sequence[int]) -> Tensor:
        """Tokenise some texts: int64 (n, L)."""
        return self.encoder.tokenise([self.texts[i] for i in indices])


@dataclass(frozen=True)
class FileSamples:
    """Files, decoded when asked for.

    Attributes:
        paths: the files.
        labels: int64 (N,).
        ids: one per file.
        decode: payload and content type to one input row.
        content_types: by suffix.
    """

    paths: Sequence[Path]
    labels: Tensor
    ids: Sequence[str]
    decode: Decode
    content_types: Mapping[str, str]

    def load(self, indices: Sequence[int]) -> Tensor:
        """Decode some files to input rows (n, ...).

        Raises:
            InputError: naming the file that is not what its suffix says.
        """
        return torch.stack([self._decoded(self.paths[i]) for i in indices])

    def _decoded(self, path: Path) -> Tensor:
        try:
            return self.decode(path.read_bytes(), self.content_types[path.suffix.lower()])
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Subset:
    """Some samples of a set, in a given order."""

    samples: SampleSet
    indices: Sequence[int]

    # Cached: learners ask for the ids of one sample after the other.
    @cached_property
    def ids(self) -> Sequence[str]:
        """Sample ids."""
        every = self.samples.ids
        return [every[i] for i in self.indices]

    @cached_property
    def labels(self) -> Tensor:
        """Class ids, int64 (N,)."""
        return self.samples.labels[torch.tensor(self.indices, dtype=torch.int64)]

    def load(self, indices: Sequence[int]) -> Tensor:
        """Decode some samples."""
        return self.samples.load([self.indices[i] for i in indices])


@dataclass(frozen=True)
class BenchData:
    """A labelled data set in its three parts; a class's id is its place in `class_names`."""

    name: str
    class_names: tuple[str, ...]
    train: SampleSet
    holdout: SampleSet
    test: SampleSet


def load_data(
    source: str,
    *,
    image_size: int,
    per_class: int,
    test_per_class: int,
    holdout_fraction: float,
    encoder: FrozenTextEncoder | None = None,
    on_progress: assets.OnProgress | None = None,
) -> BenchData:
    """Load a data set and divide it.

    Args:
        source: name of a data set of the catalogue, or a directory with a directory of images, or of texts
            (.txt), for each class; one with `train` and `test` inside keeps that division.
        image_size: side of the square input, pixels.
        per_class: most training samples of a class, held-out ones included.
        test_per_class: most test samples of a class.
        holdout_fraction: share of the training samples that is held out, above 0 and below 1.
        encoder: for texts; None for images.
        on_progress: called while a data set is fetched.

    Raises:
        ValueError: neither a directory nor in the catalogue, or a class lacks samples of some part.
        AssetError: the data set cannot be fetched.
    """
    if Path(source).is_dir():
        files = (
            _Files.of_images(image_size) if encoder is None else _Files(TEXT_TYPES, encoder.decode, "texts")
        )
        names, train, test = _directory(Path(source), files)
        name = Path(source).resolve().name
    elif encoder is not None:
        texts = assets.load_texts(source, on_progress=on_progress)
        names, name = texts.class_names, source
        train = TextSamples(texts.train_texts, *_labelled(source, "train", texts.train_labels), encoder)
        test = TextSamples(texts.test_texts, *_labelled(source, "test", texts.test_labels), encoder)
    else:
        data = assets.load_images(source, on_progress=on_progress)
        names, name = data.class_names, source
        train = ArraySamples(data.train_images, *_labelled(source, "train", data.train_labels), image_size)
        test = ArraySamples(data.test_images, *_labelled(source, "test", data.test_labels), image_size)
    chosen = _first_of_each(train, per_class)
    wanted = Subset(train, chosen)
    held = [chosen[i] for i in _share_of_each(wanted, holdout_fraction, "holdout")]
    kept = sorted(set(chosen) - set(held))
    parts = (Subset(train, kept), Subset(train, held), Subset(test, _first_of_each(test, test_per_class)))
    for part, what in zip(parts, ("training", "held-out", "test"), strict=True):
        missing = sorted(set(range(len(names))) - set(part.labels.tolist()))
        if missing:
            raise ValueError(
                f"class {names[missing[0]]!r} of {source} has no {what} sample: raise per_class "
                f"({per_class}) or give it more"
            )
    return BenchData(name, names, *parts)


def _labelled(name: str, part: str, labels: npt.NDArray[np.int64]) -> tuple[Tensor, list[str]]:
    return torch.from_numpy(labels), [f"{name}/{part}/{row}" for row in range(len(labels))]


@dataclass(frozen=True)
class _Files:
    """What a directory holds: content types by suffix, how they are decoded, and a word for them."""

    content_types: Mapping[str, str]
    decode: Decode
    kind: str

    @classmethod
    def of_images(cls, size: int) -> _Files:
        return cls(IMAGE_TYPES, lambda payload, kind: square(open_image(payload, kind), size), "images")

    def of_class(self, directory: Path) -> list[Path]:
        return [path for path in sorted(directory.glob("*")) if path.suffix.lower() in self.content_types]

    def of_classes(self, root: Path, names: Sequence[str]) -> FileSamples:
        paths, labels, ids = [], [], []
        for label, name in enumerate(names):
            for path in self.of_class(root / name):
                paths.append(path)
                labels.append(label)
                # With the content's digest: a file that changes is another sample to the feature cache.
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                ids.append(f"{root.name}/{name}/{path.name}/{digest}")
        label_ids = torch.tensor(labels, dtype=torch.int64)
        return FileSamples(paths, label_ids, ids, self.decode, self.content_types)


def _directory(root: Path, files: _Files) -> tuple[tuple[str, ...], SampleSet, SampleSet]:
    divided = (root / "train").is_dir() and (root / "test").is_dir()
    folders = sorted(p for p in (root / "train" if divided else root).iterdir() if p.is_dir())
    names = tuple(p.name for p in folders if files.of_class(p))
    if len(names) < 2:
        raise ValueError(
            f"{root} has {len(names)} directories with {files.kind}: give each of at least two classes its "
            "own (texts are read with a text encoder as backbone, images with any other)"
        )
    if divided:
        return names, files.of_classes(root / "train", names), files.of_classes(root / "test", names)
    every = files.of_classes(root, names)
    test = _share_of_each(every, TEST_SHARE, "test")
    train = sorted(set(range(len(every.ids))) - set(test))
    return names, Subset(every, train), Subset(every, test)


def _first_of_each(samples: SampleSet, count: int) -> list[int]:
    """Return the first samples of each class, in the order of a hash of their ids."""
    taken: dict[int, int] = {}
    chosen = []
    labels, ids = samples.labels.tolist(), samples.ids
    for index in sorted(range(len(labels)), key=lambda i: _hash("order", ids[i])):
        if taken.get(labels[index], 0) < count:
            taken[labels[index]] = taken.get(labels[index], 0) + 1
            chosen.append(index)
    return sorted(chosen)


def _share_of_each(samples: SampleSet, share: float, purpose: str) -> list[int]:
    """Return a share of each class's samples, at least one, chosen by a hash of their ids."""
    classes: dict[int, list[int]] = {}
    for index, label in enumerate(samples.labels.tolist()):
        classes.setdefault(label, []).append(index)
    ids = samples.ids
    chosen = []
    for members in classes.values():
        count = max(1, round(share * len(members)))
        chosen += sorted(members, key=lambda i: _hash(purpose, ids[i]))[:count]
    return sorted(chosen)


def _hash(purpose: str, sample_id: str) -> str:
    return hashlib.sha256(f"{purpose}\0{sample_id}".encode()).hexdigest()
