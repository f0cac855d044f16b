"""The catalogue's entries, and the converters on small input made by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from cl_engine import assets
from cl_engine.assets import images, texts, weights
from cl_engine.errors import AssetError


def test_every_entry_pins_one_archive_for_each_source() -> None:
    """Names are unique, digests are SHA-256, sizes and members are given."""
    entries = assets.catalogue()
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.licence
        assert entry.sources
        for source in entry.sources:
            assert len(bytes.fromhex(source.sha256)) == 32
            assert source.size > 1_000_000
            assert source.members


def test_a_backbone_that_is_not_in_the_catalogue_is_none(tmp_path: Path) -> None:
    """The caller goes on to the hub; a data set of that name is no backbone."""
    assert assets.backbone_weights("resnet18.a1_in1k", cache=tmp_path) is None
    assert assets.backbone_weights("cifar10", cache=tmp_path) is None


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    """The remedy is in the message."""
    with pytest.raises(ValueError, match=r"'cifar' is not in the asset catalogue.*cifar10"):
        assets.fetch("cifar", cache=tmp_path)


def test_a_name_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Texts are not images."""
    with pytest.raises(ValueError, match="'clinc150' is a texts, not images: use one of cifar10"):
        assets.load_images("clinc150", cache=tmp_path)


def sketches(first: int, count: int) -> bytes:
    """Gzipped lines of blank sketches whose first pixel tells them apart."""
    lines = [json.dumps([(first + i) / 255] + [0] * 783) for i in range(count)]
    return gzip.compress("\n".join(lines).encode() + b"\n")


def test_quickdraw_is_split_by_class_and_always_the_same_way(tmp_path: Path) -> None:
    """70 of 100 sketches train, the other 30 test, whatever the order of the archive."""
    members = {"x/cat.ndjson.gz": sketches(100, 100), "x/ant hill.ndjson.gz": sketches(0, 100)}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        images.convert_quickdraw(members, tmp_path / name)
        members = dict(reversed(members.items()))
    made, again = (images.load(tmp_path / name) for name in ("a", "b"))
    assert made.class_names == ("ant hill", "cat")
    assert made.train_images.shape == (140, 28, 28, 3)
    assert made.test_images.shape == (60, 28, 28, 3)
    for label, first in ((0, 0), (1, 100)):
        train = made.train_images[made.train_labels == label][:, 0, 0, 0].tolist()
        test = made.test_images[made.test_labels == label][:, 0, 0, 0].tolist()
        assert len(train) == 70
        assert sorted(train + test) == list(range(first, first + 100))
        assert train != sorted(train)
    assert np.array_equal(made.train_images, again.train_images)
    assert np.array_equal(made.test_images, again.test_images)


def idx(array: np.ndarray) -> bytes:
    """Encode an array of unsigned bytes as gzipped IDX."""
    sides = np.array(array.shape, dtype=">u4").tobytes()
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sides + array.tobytes())


@settings(deadline=None)
@given(arrays.arrays(np.uint8, arrays.array_shapes(max_dims=3, max_side=5)))
def test_idx_decodes_what_was_encoded(array: np.ndarray) -> None:
    """Any rank and any shape."""
    assert np.array_equal(images._idx(idx(array)), array)


def test_idx_of_another_type_is_refused() -> None:
    """Type 0x0D is float, not unsigned bytes."""
    with pytest.raises(ValueError, match="not an IDX file"):
        images._idx(gzip.compress(b"\x00\x00\x0d\x01\x00\x00\x00\x00"))


def test_fashion_mnist_becomes_rgb(tmp_path: Path) -> None:
    """Grey is repeated over three channels, labels become int64."""
    random = np.random.default_rng(0)
    train, test = (random.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (20, 10))
    labels = np.arange(20, dtype=np.uint8) % 10
    images.convert_fashion_mnist(
        {
            "d/train-images-idx3-ubyte.gz": idx(train),
            "d/train-labels-idx1-ubyte.gz": idx(labels),
            "d/t10k-images-idx3-ubyte.gz": idx(test),
            "d/t10k-labels-idx1-ubyte.gz": idx(labels[:10]),
        },
        tmp_path,
    )
    made = images.load(tmp_path)
    assert all(np.array_equal(made.train_images[..., channel], train) for channel in range(3))
    assert made.test_labels.dtype == np.int64
    assert made.class_names[9] == "Ankle boot"


def test_images_without_a_label_each_are_refused(tmp_path: Path) -> None:
    """A shifted label list would poison every result."""
    pixels = np.zeros((2, 4, 4), dtype=np.uint8)
    labelled = images.LabelledImages(pixels, np.array([0]), pixels, np.array([0, 0]), ("a",))
    with pytest.raises(ValueError, match="2 images have 1 labels"):
        images._save(tmp_path, labelled)


def intents(*rows: str) -> bytes:
    """Write a tab-separated file with its header."""
    return "\n".join(("text\tlabel", *rows, "")).encode()


def test_intents_may_be_quoted_and_span_lines(tmp_path: Path) -> None:
    """CSV's quoting is undone; labels are numbered in sorted order."""
    texts.convert_intents(
        {
            "d/train.tsv": intents('"\nWhere is ""my"" card?"\tcard', "refund 10 €\trefund", "plain\tcard"),
            "d/dev.tsv": intents("a\tcard", "b\trefund"),
            "d/test.tsv": intents("c\trefund", "d\tcard"),
        },
        tmp_path,
    )
    made = texts.load(tmp_path)
    assert made.train_texts == ('Where is "my" card?', "refund 10 €", "plain")
    assert made.train_labels.tolist() == [0, 1, 0]
    assert made.dev_labels.tolist() == [0, 1]
    assert made.test_labels.tolist() == [1, 0]
    assert made.class_names == ("card", "refund")


def test_parts_with_other_classes_are_refused(tmp_path: Path) -> None:
    """A class that is never tested, or never trained, is a damaged file."""
    whole = intents("a\tcard", "b\trefund")
    with pytest.raises(ValueError, match="classes of dev differ"):
        texts.convert_intents(
            {"train.tsv": whole, "dev.tsv": intents("a\tcard"), "test.tsv": whole}, tmp_path
        )


@pytest.mark.parametrize("content", ["", "{}", "[1"])
def test_a_damaged_text_file_is_said_so(tmp_path: Path, content: str) -> None:
    """The remedy is to delete and to fetch again."""
    (tmp_path / "texts.json").write_text(content)
    with pytest.raises(AssetError, match="is damaged: delete"):
        texts.load(tmp_path)


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("/blocks.3/attn/qkv/MatMul", "blocks.3.attn.qkv.MatMul"),
        ("/stages/stages.1/blocks/blocks.0/mlp/fc1/MatMul", "stages.1.blocks.0.mlp.fc1.MatMul"),
        ("/patch_embed/conv1/conv/Conv", "patch_embed.conv1.conv.Conv"),
    ],
)
def test_node_names_become_module_paths(node: str, module: str) -> None:
    """Names of nested containers that the exporter repeats are dropped."""
    assert weights._module_path(node) == module
