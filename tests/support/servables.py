"""Servables with a known answer, for tests of what is around them."""

from __future__ import annotations

import hashlib
import threading

import torch
from torch import Tensor

from cl_engine.errors import InputError
from cl_engine.images import open_image, square
from cl_engine.learners.base import Prediction


class LinearServable:
    """Scores are a fixed random linear map of the mean colour of a 4 x 4 grid; seeds differ clearly."""

    SIDE = 4

    def __init__(self, seed: int, num_classes: int = 3, first_class: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.seed = seed
        self.weight = torch.randn(num_classes, 3 * self.SIDE**2, generator=generator)
        self.class_ids = tuple(range(first_class, first_class + num_classes))
        self.labels = {i: f"class-{i}" for i in self.class_ids}
        self.digest = hashlib.sha256(f"linear {seed}".encode()).hexdigest()

    def predict(self, inputs: Tensor) -> Prediction:
        """Classify a batch (B, 3, 4, 4)."""
        scores = (inputs.flatten(1).float() / 255 @ self.weight.T).softmax(dim=1)
        ids = torch.tensor(self.class_ids)[scores.argmax(dim=1)]
        return Prediction(scores, ids, 1 - scores.amax(dim=1))

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Decode an image to (3, 4, 4)."""
        return square(open_image(payload, content_type, 1_000_000), self.SIDE)

    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.weight.nbytes


class TextServable(LinearServable):
    """Takes texts: the row is the first bytes of the text."""

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Decode a text to (3, 4, 4)."""
        if content_type != "text/plain":
            raise InputError(f"content type {content_type!r} is not text/plain")
        padded = payload[:48].ljust(48, b"\0")
        return torch.tensor(list(padded), dtype=torch.uint8).reshape(3, 4, 4)


class HeldServable(LinearServable):
    """Computes only once `go` is set; `entered` says that it has begun."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.entered = threading.Event()
        self.go = threading.Event()
        self.batches: list[int] = []

    def predict(self, inputs: Tensor) -> Prediction:
        """Wait, then classify."""
        self.batches.append(len(inputs))
        self.entered.set()
        assert self.go.wait(20), "the test never let predict go on"
        return super().predict(inputs)


class FailingServable(LinearServable):
    """Fails at every batch."""

    def predict(self, inputs: Tensor) -> Prediction:
        """Raise."""
        raise RuntimeError(f"device lost, with {len(inputs)} inputs")
