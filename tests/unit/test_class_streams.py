"""The benchmarks' streams of several data sets: what a sample and a session of them is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from cl_engine.cached_features import CachedExtract
from tests.benchmarks.class_streams import ClassStream, OpenStream, load_sources
from tests.support.small_backbone import SIZE, small_backbone

FIRST, SECOND = 5, 2


@pytest.fixture
def stream(tmp_path: Path) -> ClassStream:
    """Describe a stream of two directories of grey images, five and two classes, at most four taken."""
    shade = 0
    for name, classes in (("first", FIRST), ("second", SECOND)):
        for label in range(classes):
            shade += 30
            folder = tmp_path / name / f"class-{label}"
            folder.mkdir(parents=True)
            for number in range(20):
                Image.new("RGB", (SIZE, SIZE), (shade, shade, shade)).save(folder / f"{number}.png")
    data = f"{tmp_path / 'first'}+{tmp_path / 'second'}"
    return ClassStream(data, SIZE, 2, 6, 2, 2, classes=4, feature_blocks=2, adapter_blocks=2)


def test_samples_lie_one_data_set_after_another(stream: ClassStream) -> None:
    """Labels go on counting, and each sample loads from its own data set, in any order."""
    data, sources = load_sources(stream)
    assert sources == (range(4), range(4, 6))
    assert data.class_names[:1] + data.class_names[4:] == (
        "first/class-0",
        "second/class-0",
        "second/class-1",
    )
    assert torch.bincount(data.train.labels).tolist() == [6] * 6
    assert len(set(data.train.ids)) == 36
    wanted = [35, 0, 23, 24]
    shades = data.train.load(wanted)[:, 0, 0, 0].tolist()
    # Shade 150 is the fifth class of the first directory, which is not taken.
    expected = [30, 60, 90, 120, 180, 210]
    assert shades == [expected[label] for label in data.train.labels[wanted].tolist()]


def test_no_session_has_classes_of_two_data_sets(stream: ClassStream) -> None:
    """Two sessions of the first, one of the second, in an order that the seed draws."""
    backbone = small_backbone()
    data, sources = load_sources(stream)
    opened = OpenStream(backbone, data, CachedExtract(backbone, 2, 1), 2, sources)
    places = set()
    for seed in range(8):
        sessions = opened.stream(seed).sessions
        assert sorted(c for own in sessions for c in own) == list(range(6))
        assert all(len({c >= 4 for c in own}) == 1 for own in sessions)
        places.add(sessions.index((4, 5)))
        assert opened.stream(seed).sessions == sessions
    assert places == {0, 1, 2}
