"""The contract between a learning method and whoever runs its sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from cl_engine.generation import Generation
from cl_engine.samples import SessionData


@dataclass(frozen=True)
class Progress:
    """One step of a session, for progress bars, logs and metrics.

    Attributes:
        phase: `features`, `explore`, `compact`, `mask`, `weights`, `head` or `evaluate`.
        done: share of the whole session that is finished, 0 to 1.
        detail: numbers of the phase, for example `{"epoch": 2, "loss": 0.31}`.
    """

    phase: str
    done: float
    detail: Mapping[str, float] = field(default_factory=dict)


ProgressListener = Callable[[Progress], None]


class Learner(Protocol):
    """A class-incremental method.

    A learner holds no state between sessions: everything it needs is in the previous generation, so
    a session can run in any process, be killed at any instruction, and be run again.
    """

    @property
    def method(self) -> str:
        """Name of the method as it stands in manifests, metrics and settings."""
        ...

    def learn(
        self,
        data: SessionData,
        previous: Generation | None,
        *,
        checkpoint: Path | None = None,
        on_progress: ProgressListener | None = None,
    ) -> Generation:
        """Run one session and return the next generation.

        The same previous generation, data and seed give the same generation digest on one machine,
        whether or not the session was interrupted and resumed from `checkpoint`.

        Args:
            data: the new classes' samples and the holdout.
            previous: the generation to build on, None for the first session.
            checkpoint: directory for the session's checkpoints; one that holds a checkpoint of the
                same session is resumed, one of another session is ignored and overwritten.
            on_progress: called after every epoch and phase.

        Raises:
            CapacityExhausted: the method's fixed capacity is used up.
            Diverged: the loss is no longer finite.
            CertificateViolation: the new generation would change what it promised not to.
        """
        ...

    def servable(self, generation: Generation) -> Servable:
        """Build the thing that answers requests from a generation.

        Raises:
            UnsupportedGeneration: it was made for another backbone or by another method.
        """
        ...


@dataclass(frozen=True)
class Prediction:
    """Answers for a batch; row i belongs to input i.

    Attributes:
        scores: float32 (B, C), softmax probabilities over `Servable.class_ids`.
        class_ids: int64 (B,), permanent class id of the highest score.
        unknown: float32 (B,), 0 (typical of its class) to 1 (unlike every class), calibrated on the
            holdout: the share of holdout samples that lie nearer to their prototype.
    """

    scores: Tensor
    class_ids: Tensor
    unknown: Tensor


class Servable(Protocol):
    """A generation made ready to answer: its tensors resident on the device, nothing shared mutable.

    Thread safety: `predict` is called from one thread at a time.
    """

    @property
    def digest(self) -> str:
        """Digest of the generation it answers for."""
        ...

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Permanent class ids, in the order of the score columns."""
        ...

    @property
    def labels(self) -> Mapping[int, str]:
        """Class id to label, as the generation's class table has it."""
        ...

    def predict(self, inputs: Tensor) -> Prediction:
        """Classify a batch: uint8 images (B, 3, S, S) or int64 token ids (B, L)."""
        ...

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Decode one request payload to one input row.

        Raises:
            InputError: the payload is not what its content type says, or breaks a limit.
        """
        ...

    def nbytes(self) -> int:
        """Bytes held on the device beyond the shared backbone."""
        ...


Settings = Mapping[str, Any]
