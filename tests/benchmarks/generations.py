"""Real generations for benchmarks: SGDS over the offline DINOv2 backbone, taught on CIFAR-10."""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
from PIL import Image

from cl_engine import assets
from cl_engine.backbones import Backbone, load_backbone
from cl_engine.generation import Generation
from cl_engine.images import square
from cl_engine.learners import create
from cl_engine.samples import SessionData, TensorSamples

BACKBONE = "vit_small_patch14_dinov2.lvd142m"
CLASSES_PER_SESSION = 2


@dataclass(frozen=True)
class Taught:
    """Consecutive generations of one stream and images to ask them about.

    Attributes:
        backbone: what they share.
        generations: one per session.
        images: PNG files that no session has seen, of the classes of all sessions.
    """

    backbone: Backbone
    generations: tuple[Generation, ...]
    images: tuple[bytes, ...]


def teach(seed: int, *, sessions: int, image_size: int, per_class: int, images: int, epochs: int) -> Taught:
    """Run some SGDS sessions of two CIFAR-10 classes each.

    Args:
        seed: of the learner.
        sessions: how many, at most 5.
        image_size: side of the backbone's input, pixels.
        per_class: training images per class; the holdout has half as many.
        images: how many images to return.
        epochs: of each of SGDS's two phases.
    """
    data = assets.load_images("cifar10")
    backbone = load_backbone(BACKBONE, image_size=image_size)
    learner = create("sgds", backbone, {"explore_epochs": epochs, "compact_epochs": epochs})
    pixels, labels = torch.as_tensor(data.test_images), torch.as_tensor(data.test_labels).long()
    by_class = [torch.nonzero(labels == c).flatten() for c in range(sessions * CLASSES_PER_SESSION)]

    def samples(classes: range, start: int, stop: int) -> TensorSamples:
        rows = torch.cat([by_class[c][start:stop] for c in classes])
        inputs = torch.stack([square(Image.fromarray(pixels[r].numpy()), image_size) for r in rows])
        return TensorSamples(inputs, labels[rows], tuple(str(int(r)) for r in rows))

    generations: list[Generation] = []
    for session in range(sessions):
        end = (session + 1) * CLASSES_PER_SESSION
        new = range(end - CLASSES_PER_SESSION, end)
        generations.append(
            learner.learn(
                SessionData(
                    session=session,
                    new_classes=tuple(new),
                    train=samples(new, 0, per_class),
                    holdout=samples(range(end), per_class, per_class + per_class // 2),
                    class_labels={c: data.class_names[c] for c in range(end)},
                    seed=seed,
                ),
                generations[-1] if generations else None,
            )
        )
    first_unseen = per_class + per_class // 2
    rows = [int(by_class[i % len(by_class)][first_unseen + i // len(by_class)]) for i in range(images)]
    return Taught(backbone, tuple(generations), tuple(_png(pixels[row]) for row in rows))


def _png(pixels: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return buffer.getvalue()
