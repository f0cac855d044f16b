"""A frozen vision transformer of a few thousand random weights, and images it can tell apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cl_engine.backbones import FrozenVisionTransformer
from cl_engine.samples import SessionData, TensorSamples

SIZE = 16


def small_backbone(name: str = "small") -> FrozenVisionTransformer:
    """Build it; every call gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(
            img_size=SIZE, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=0
        )
    return FrozenVisionTransformer(
        f"{name}@{SIZE}px-0", model, SIZE, (0.5,) * 3, (0.25,) * 3, torch.device("cpu"), torch.float32
    )


def images(classes: Sequence[int], per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw noisy images around one pattern per class: uint8 (N, 3, 16, 16), and class ids."""
    random = torch.Generator().manual_seed(seed)
    rows, labels = [], []
    for class_id in classes:
        pattern = torch.randint(0, 256, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(class_id))
        noise = torch.randn(per_class, 3, SIZE, SIZE, generator=random) * 30
        rows.append((pattern + noise).clamp(0, 255).to(torch.uint8))
        labels += [class_id] * per_class
    return torch.cat(rows), torch.tensor(labels)


def session_data(session: int, new: Sequence[int], known: Sequence[int], per_class: int = 24) -> SessionData:
    """Put together a session: its new classes' samples, and a holdout of all classes so far."""
    inputs, labels = images(new, per_class, seed=100 + session)
    held, held_labels = images([*known, *new], 8, seed=900)
    classes = sorted([*known, *new])
    return SessionData(
        session=session,
        new_classes=tuple(sorted(new)),
        train=TensorSamples(inputs, labels, [f"{session}-{i}" for i in range(len(labels))]),
        holdout=TensorSamples(held, held_labels),
        class_labels={c: f"class {c}" for c in classes},
        seed=5,
    )
