"""After the stream: every generation and the baselines on the same test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cl_engine import evaluation
from cl_engine.backbones import FrozenVisionTransformer, load_backbone
from cl_engine.cached_features import CachedExtract
from cl_engine.features import BaseFeatures
from cl_engine.generation import Generation, GenerationDirectory
from cl_engine.learners import create
from cl_engine.learners.fine_tuning import FineTuningServable
from cl_engine.learners.nearest_mean import NearestMeanServable
from cl_engine.samples import SessionData, TensorSamples
from cl_engine.sgds.servable import SGDSServable
from daemon.demo.images import CONTENT_TYPE, DemoImages
from daemon.demo.settings import DemoSettings
from daemon.sessions.job import generations_directory

BATCH = 32
OnStep = Callable[[str, float], None]


@dataclass(frozen=True)
class MethodResult:
    """One method's accuracy matrix on the test images and what follows from it."""

    matrix: list[list[float | None]]
    a_t: float
    a_bar: float
    forgetting: float

    @classmethod
    def of(cls, matrix: list[list[float | None]], weights: Sequence[float]) -> MethodResult:
        """Derive the summary figures; `weights` are the test images per session."""
        return cls(
            matrix,
            evaluation.last_accuracy(matrix, weights),
            evaluation.average_accuracy(matrix, weights),
            evaluation.forgetting(matrix),
        )


@dataclass(frozen=True)
class Measured:
    """The three methods side by side."""

    sgds: MethodResult
    ncm: MethodResult
    finetune: MethodResult


Servable = SGDSServable | NearestMeanServable | FineTuningServable


def measure(
    settings: DemoSettings,
    images: DemoImages,
    state_directory: Path,
    digests: Sequence[str],
    on_step: OnStep,
) -> Measured:
    """Measure the stream's generations, and the baselines trained on the same images.

    The baselines get every produced image, also those that the daemon held out.

    Args:
        settings: of the demo.
        images: what was produced, and the test images.
        state_directory: where the generations are.
        digests: the promoted generations in order.
        on_step: called with what is being done and the finished share of it.
    """
    loaded = load_backbone("vit_small_patch14_dinov2.lvd142m", image_size=settings.image_size)
    assert isinstance(loaded, FrozenVisionTransformer)
    directory = GenerationDirectory(generations_directory(state_directory))
    generations = [directory.load(digest) for digest in digests]
    # The daemon numbers the classes in order of arrival; the last generation knows them all.
    id_of = {entry.label: entry.id for entry in generations[-1].classes}
    sessions = [[e.id for e in g.classes if e.session == g.session] for g in generations]
    session_of = {class_id: t for t, members in enumerate(sessions) for class_id in members}
    cached = CachedExtract(loaded, settings.feature_blocks, loaded.depth - settings.adapter_blocks)
    test = _samples(loaded, images.test, id_of, "test")
    base = cached(
        loaded,
        test,
        settings.feature_blocks,
        loaded.depth - settings.adapter_blocks,
        on_batch=lambda n: on_step("test images", n / len(test.labels)),
    )

    def row(answers: Servable, known: int) -> list[float | None]:
        rows = torch.tensor([i for i, c in enumerate(test.labels.tolist()) if session_of[c] <= known])
        predicted = _predict(answers, base.rows(rows))
        seen = {c: t for c, t in session_of.items() if t <= known}
        return evaluation.accuracy_matrix_row(predicted, test.labels[rows], seen)

    matrix = []
    for t, generation in enumerate(generations):
        matrix.append(row(SGDSServable(loaded, generation), t))
        on_step("generations", (t + 1) / len(generations))

    train = _samples(loaded, images.train, id_of, "train")
    labels = {class_id: label for label, class_id in id_of.items()}
    weights = evaluation.holdout_counts(test.labels, session_of)

    def baseline(method: str, options: dict[str, int]) -> MethodResult:
        learner = create(method, loaded, options, cached)
        previous: Generation | None = None
        rows = []
        for t, new in enumerate(sessions):
            data = SessionData(t, tuple(sorted(new)), _of(train, new), _of(train, []), labels, settings.seed)
            previous = replace(learner.learn(data, previous), parent=None)
            answers = learner.servable(previous)
            assert isinstance(answers, Servable)
            rows.append(row(answers, t))
            on_step(f"baseline {method}", (t + 1) / len(sessions))
        return MethodResult.of(rows, weights)

    return Measured(
        MethodResult.of(matrix, weights),
        baseline("ncm", {"feature_blocks": settings.feature_blocks}),
        baseline(
            "finetune",
            {
                "adapter_blocks": settings.adapter_blocks,
                "epochs": settings.explore_epochs + settings.compact_epochs,
            },
        ),
    )


def _samples(
    backbone: FrozenVisionTransformer, images: object, id_of: dict[str, int], kind: str
) -> TensorSamples:
    assert isinstance(images, dict)
    rows, labels, ids = [], [], []
    for name, payloads in images.items():
        for index, payload in enumerate(payloads):
            rows.append(backbone.decode(payload, CONTENT_TYPE))
            labels.append(id_of[name])
            ids.append(f"{kind}/{name}/{index}")
    return TensorSamples(torch.stack(rows), torch.tensor(labels, dtype=torch.int64), tuple(ids))


def _of(samples: TensorSamples, classes: Sequence[int]) -> TensorSamples:
    rows = [i for i, c in enumerate(samples.labels.tolist()) if c in set(classes)]
    index = torch.tensor(rows, dtype=torch.int64)
    return TensorSamples(samples.inputs[index], samples.labels[index], tuple(samples.ids[i] for i in rows))


def _predict(answers: Servable, base: BaseFeatures) -> Tensor:
    parts = torch.split(torch.arange(len(base.features)), BATCH)
    return torch.cat([answers.predict_from(base.rows(part)).class_ids for part in parts])
