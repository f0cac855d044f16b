"""TinyViT with its real weights on real images: the same numbers as timm's, and the methods on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from cl_engine import assets
from cl_engine.assets.images import LabelledImages
from cl_engine.backbones import load_backbone
from cl_engine.backbones.tiny_vit import FrozenTinyViT
from cl_engine.cached_features import CachedExtract
from cl_engine.images import square
from cl_engine.learners import create
from cl_engine.samples import SessionData, TensorSamples

pytestmark = pytest.mark.integration

BACKBONE = "tiny_vit_5m_224.dist_in22k"
SIZE, TRAIN, TEST = 112, 12, 5
METHODS: dict[str, dict[str, Any]] = {
    "ridge": {},
    "ranpac": {"projection": 500},
    "slda": {},
    "ncm": {},
    "exssnet": {"epochs": 5},
    "sgds": {"adapter_blocks": 2, "explore_epochs": 1, "compact_epochs": 1},
}


def samples(data: LabelledImages, classes: Sequence[int], *, train: bool) -> TensorSamples:
    """Take the first images of some classes, scaled to the backbone's size."""
    images, labels = (data.train_images, data.train_labels) if train else (data.test_images, data.test_labels)
    rows = [int(i) for c in classes for i in (labels == c).nonzero()[0][: TRAIN if train else TEST]]
    return TensorSamples(
        torch.stack([square(Image.fromarray(images[i]), SIZE) for i in rows]),
        torch.tensor([int(labels[i]) for i in rows]),
        [f"{'train' if train else 'test'}-{i}" for i in rows],
    )


def test_two_sessions_of_cifar10_by_every_method() -> None:
    """Four classes in two sessions; features of the last four blocks, which are of two widths."""
    backbone = load_backbone(BACKBONE, image_size=SIZE, dtype="float32")
    assert isinstance(backbone, FrozenTinyViT)
    data = assets.load_images("cifar10")
    held = samples(data, range(4), train=False)
    with torch.inference_mode():
        whole = backbone.model.forward_features(backbone.normalise(held.inputs[:2]))
        ours = backbone.last(backbone.embed(held.inputs[:2]), 0)
    torch.testing.assert_close(ours, whole.flatten(2).transpose(1, 2))
    # One frozen pass for all methods.
    cached = CachedExtract(backbone, 4, backbone.depth - 2)
    sessions = [
        SessionData(
            session=number,
            new_classes=new,
            train=samples(data, new, train=True),
            holdout=samples(data, range(new[-1] + 1), train=False),
            class_labels={c: data.class_names[c] for c in range(new[-1] + 1)},
        )
        for number, new in enumerate([(0, 1), (2, 3)])
    ]
    for method, options in METHODS.items():
        learner = create(method, backbone, options, cached)
        generation = learner.learn(sessions[1], learner.learn(sessions[0], None))
        assert generation.certificate["holds"]
        predicted = learner.servable(generation).predict(held.inputs).class_ids
        # 13 of 20 right by chance, at 1 in 4, has odds of 1 in 5,000: a broken path is seen, no figure.
        assert float((predicted == held.labels).double().mean()) >= 0.65, method
