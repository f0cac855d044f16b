"""What a learner is given: labelled inputs, addressed by index, decoded on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class SampleSet(Protocol):
    """Labelled inputs that are decoded only when asked for.

    The daemon backs it by the sample store, a notebook by tensors (`TensorSamples`).
    """

    @property
    def ids(self) -> Sequence[str]:
        """Sample ids, one per sample; unique within the stream."""
        ...

    @property
    def labels(self) -> Tensor:
        """Permanent class ids, int64 (N,)."""
        ...

    def load(self, indices: Sequence[int]) -> Tensor:
        """Decode some samples: images as uint8 (n, 3, S, S), text as int64 token ids (n, L)."""
        ...


@dataclass(frozen=True)
class TensorSamples:
    """Samples that are already tensors in memory."""

    inputs: Tensor
    labels: Tensor
    ids: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels):
            raise ValueError(f"inputs ({len(self.inputs)}) and labels ({len(self.labels)}) differ in length")
        if self.ids and len(self.ids) != len(self.labels):
            raise ValueError(f"ids ({len(self.ids)}) and labels ({len(self.labels)}) differ in length")
        if not self.ids:
            object.__setattr__(self, "ids", tuple(str(i) for i in range(len(self.labels))))

    def load(self, indices: Sequence[int]) -> Tensor:
        """Select rows of the stored inputs."""
        return self.inputs[torch.as_tensor(list(indices), dtype=torch.int64)]


@dataclass(frozen=True)
class SessionData:
    """Everything one class-incremental session may look at.

    Attributes:
        session: 0-based index of the session.
        new_classes: permanent ids of the classes this session introduces, ascending.
        train: samples of the new classes, and any not yet learnt samples of known classes
            (those only refresh exact statistics; no weight is trained on them).
        holdout: samples of the new and of all earlier classes, never trained on.
        class_labels: class id to label, for every class known so far.
        seed: everything random in the session derives from it.
    """

    session: int
    new_classes: tuple[int, ...]
    train: SampleSet
    holdout: SampleSet
    class_labels: Mapping[int, str]
    seed: int = 0
