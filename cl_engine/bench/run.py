"""Run one method over one stream and measure it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cl_engine import evaluation
from cl_engine.backbones import BlockwiseBackbone
from cl_engine.bench.joint import JointModel, JointSettings, train_jointly
from cl_engine.bench.memory import PeakMemory
from cl_engine.bench.stream import Stream
from cl_engine.features import BaseFeatures, Extract
from cl_engine.generation import Generation
from cl_engine.learners import create, default_options, methods
from cl_engine.learners.analytic import AnalyticSettings
from cl_engine.learners.base import Learner, Prediction
from cl_engine.learners.registry import check_options
from cl_engine.masks.overlap import jaccard_matrix
from cl_engine.samples import SampleSet, SessionData

JOINT = "joint"
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class MethodRun:
    """What one method did on one stream.

    Attributes:
        method: its name.
        seed: of the class order and of the learner.
        matrix: accuracy on test samples, `matrix[t][i]` on session i's classes after session t.
        weights: test samples of each session's classes.
        holdout_accuracy: over all classes after the last session, on held-out training samples; what a
            choice between methods should look at.
        session_seconds: wall time of each session, the frozen pass left out: every method shares it.
        bytes_per_class: of what serving needs after the last session, the backbone left out.
        peak_memory_bytes: highest memory of the process, or of the GPU, during the sessions.
        overlap: Jaccard overlap of the classes' input masks, in the order of the class table; SGDS only.
        classes: labels of the class table, in its order.
        forward_transfer: against learning each session alone; None where it was not measured.
    """

    method: str
    seed: int
    matrix: Sequence[evaluation.Row]
    weights: Sequence[float]
    holdout_accuracy: float
    session_seconds: Sequence[float]
    bytes_per_class: float
    peak_memory_bytes: int
    overlap: Sequence[Sequence[float]] | None
    classes: Sequence[str]
    forward_transfer: float | None = None

    def figures(self) -> dict[str, float]:
        """Return the figures of the table."""
        transfer = {} if self.forward_transfer is None else {"fwt": self.forward_transfer}
        return transfer | {
            "a_t": evaluation.last_accuracy(self.matrix, self.weights),
            "a_bar": evaluation.average_accuracy(self.matrix, self.weights),
            "forgetting": evaluation.forgetting(self.matrix),
            "bwt": evaluation.backward_transfer(self.matrix),
            "holdout_a_t": self.holdout_accuracy,
            "session_seconds": sum(self.session_seconds) / len(self.session_seconds),
            "bytes_per_class": self.bytes_per_class,
            "peak_memory_bytes": float(self.peak_memory_bytes),
        }

    def curve(self) -> list[float]:
        """Return the accuracy over all classes so far after each session."""
        return evaluation.accuracy_curve(self.matrix, self.weights)


class _Contender(Protocol):
    """A method in the comparison: runs sessions, then answers from base features."""

    feature_blocks: int
    continue_from: int | None

    def session(self, stream: Stream, index: int) -> None: ...

    def predict(self, base: BaseFeatures) -> Tensor: ...

    def nbytes(self) -> int: ...


class _Answers(Protocol):
    """A servable that can answer from base features, which all methods of this package can."""

    def predict_from(self, base: BaseFeatures) -> Prediction: ...


class _Learned:
    """A learner of the registry."""

    def __init__(
        self, method: str, backbone: BlockwiseBackbone, options: Mapping[str, Any], learner: Learner
    ) -> None:
        effective = default_options(method) | dict(options)
        self.feature_blocks = int(effective.get("feature_blocks", 1))
        adapters = effective["adapter_blocks"] if reads_tokens(method, options) else None
        self.continue_from = None if adapters is None else backbone.depth - int(adapters)
        self._learner = learner
        self._answers: _Answers | None = None
        self.generation: Generation | None = None

    def session(self, stream: Stream, index: int) -> None:
        """Learn a session from its own samples and build what answers."""
        self.learn(stream.session(index))

    def learn(self, data: SessionData) -> None:
        """Learn a session and build what answers."""
        self.generation = self._learner.learn(data, self.generation)
        servable: Any = self._learner.servable(self.generation)
        self._answers = servable

    def predict(self, base: BaseFeatures) -> Tensor:
        """Return class ids (B,)."""
        assert self._answers is not None
        return self._answers.predict_from(base).class_ids

    def predict_among(self, base: BaseFeatures, classes: Sequence[int]) -> Tensor:
        """Return the best of some classes (B,)."""
        assert self._answers is not None
        assert self.generation is not None
        columns = [self.generation.class_ids.index(c) for c in classes]
        best = self._answers.predict_from(base).scores[:, columns].argmax(dim=1)
        return torch.tensor(list(classes))[best]

    def nbytes(self) -> int:
        """Return the bytes of tensors and packed masks."""
        assert self.generation is not None
        tensors = sum(t.numel() * t.element_size() for t in self.generation.tensors.values())
        return tensors + sum((mask.numel() + 7) // 8 for mask in self.generation.masks.values())


class _Joint:
    """Joint training anew on everything after each session."""

    def __init__(self, backbone: BlockwiseBackbone, options: Mapping[str, Any], extract: Extract) -> None:
        self._settings = JointSettings(**options)
        self._backbone, self._extract = backbone, extract
        self.feature_blocks = self._settings.feature_blocks
        self.continue_from: int | None = backbone.depth - self._settings.adapter_blocks
        self._model: JointModel | None = None

    def session(self, stream: Stream, index: int) -> None:
        """Train on all classes so far."""
        self._model = train_jointly(self._backbone, stream.everything(index), self._settings, self._extract)

    def predict(self, base: BaseFeatures) -> Tensor:
        """Return class ids (B,)."""
        assert self._model is not None
        return self._model.predict(base)

    def nbytes(self) -> int:
        """Return the bytes of adapters and head."""
        assert self._model is not None
        return self._model.nbytes()


def method_names() -> tuple[str, ...]:
    """Name everything that can be compared: the daemon's methods, and joint training."""
    return (*methods(), JOINT)


def reads_tokens(method: str, options: Mapping[str, Any]) -> bool:
    """Say whether a method needs the tokens that enter the first adapted block."""
    if method == JOINT:
        return True
    settings = check_options(method, options)
    if isinstance(settings, AnalyticSettings):
        return settings.adapt_first_session
    return "adapter_blocks" in type(settings).model_fields


def shared_options(method: str, feature_blocks: int, adapter_blocks: int) -> dict[str, int]:
    """Return the settings that give a method the same features and adapter places as all others.

    Raises:
        ValueError: unknown method.
    """
    has = JointSettings().model_dump() if method == JOINT else default_options(method)
    wanted = {"feature_blocks": feature_blocks, "adapter_blocks": adapter_blocks}
    return {name: value for name, value in wanted.items() if name in has}


def run_method(
    method: str,
    backbone: BlockwiseBackbone,
    stream: Stream,
    options: Mapping[str, Any],
    extract: Extract,
    on_session: Callable[[int], None] | None = None,
    learner: Learner | None = None,
    transfer: bool = False,
) -> MethodRun:
    """Run a method over all sessions of a stream.

    Args:
        method: one of `method_names()`.
        backbone: the frozen network.
        stream: the sessions.
        options: the method's settings.
        extract: where base features come from; a cache that is filled, so that the times leave them out.
        on_session: called with the session's index after it is learnt and measured.
        learner: runs the sessions in place of the registry's; the options must be its own.
        transfer: also learn each session alone, for the forward transfer; joint training has none.

    Raises:
        ValueError: unknown method or option.
        LearningError: the method cannot go on.
    """
    contender: _Contender
    runs_sessions = learner
    if method == JOINT:
        contender = _Joint(backbone, options, extract)
    else:
        runs_sessions = create(method, backbone, options, extract) if learner is None else learner
        contender = _Learned(method, backbone, options, runs_sessions)
    learnt: list[float | None] = []
    alone: list[float | None] = []
    matrix: list[list[float | None]] = []
    seconds: list[float] = []
    peak = 0
    for index in range(len(stream.sessions)):
        with PeakMemory(backbone.device) as memory:
            started = time.perf_counter()
            contender.session(stream, index)
            seconds.append(time.perf_counter() - started)
        peak = max(peak, memory.nbytes)
        test = stream.test(index)
        predicted = _predicted(contender, backbone, test, extract)
        matrix.append(evaluation.accuracy_matrix_row(predicted, test.labels, stream.class_to_session(index)))
        if transfer and isinstance(contender, _Learned):
            assert runs_sessions is not None
            fresh = _Learned(method, backbone, options, runs_sessions)
            fresh.learn(stream.alone(index))
            own = stream.sessions[index]
            learnt.append(_accuracy_among(contender, backbone, test, extract, own))
            alone.append(_accuracy_among(fresh, backbone, test, extract, own))
        if on_session is not None:
            on_session(index)
    last = len(stream.sessions) - 1
    holdout = stream.session(last).holdout
    right = _predicted(contender, backbone, holdout, extract) == holdout.labels
    generation = contender.generation if isinstance(contender, _Learned) else None
    order = stream.known(last) if generation is None else generation.class_ids
    overlap = None
    if generation is not None and "input.class" in generation.masks:
        overlap = jaccard_matrix(list(generation.masks["input.class"])).tolist()
    return MethodRun(
        method=method,
        seed=stream.seed,
        matrix=matrix,
        weights=evaluation.holdout_counts(stream.test(last).labels, stream.class_to_session(last)),
        holdout_accuracy=float(right.double().mean()),
        session_seconds=seconds,
        bytes_per_class=contender.nbytes() / len(order),
        peak_memory_bytes=peak,
        overlap=overlap,
        classes=[stream.data.class_names[c] for c in order],
        forward_transfer=evaluation.learning_transfer(learnt, alone) if learnt else None,
    )


def _accuracy_among(
    contender: _Learned,
    backbone: BlockwiseBackbone,
    test: SampleSet,
    extract: Extract,
    classes: Sequence[int],
) -> float:
    """Return the accuracy on the samples of some classes, with those alone to choose from."""
    rows = torch.isin(test.labels, torch.tensor(list(classes))).nonzero().squeeze(1)
    right = 0
    for batch in torch.split(rows, EVALUATION_BATCH):
        base = extract(
            backbone, test, contender.feature_blocks, contender.continue_from, indices=batch.tolist()
        )
        right += int((contender.predict_among(base, classes) == test.labels[batch]).sum())
    return right / len(rows)


def _predicted(
    contender: _Contender, backbone: BlockwiseBackbone, samples: SampleSet, extract: Extract
) -> Tensor:
    """Return the class ids that a contender answers with, int64 (N,)."""
    parts = []
    for rows in torch.split(torch.arange(len(samples.labels)), EVALUATION_BATCH):
        base = extract(
            backbone, samples, contender.feature_blocks, contender.continue_from, indices=rows.tolist()
        )
        parts.append(contender.predict(base))
    return torch.cat(parts)
