"""A frozen timm model as a source of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from cl_engine.images import DEFAULT_MAX_PIXELS, IMAGE_FORMATS, open_image, square

Result = TypeVar("Result")


# MiniLM's sentence encoders were trained on texts of 128 tokens, about a hundred words.
DEFAULT_MAX_TOKENS = 128
# The encoder reads the first hundred words or so; this is a chapter of a book, and takes the tokeniser 30 ms.
DEFAULT_MAX_TEXT_BYTES = 64 * 2**10


@dataclass(frozen=True)
class DecodeLimits:
    """Bounds on a payload, checked before it is decoded.

    Attributes:
        max_pixels: largest image, width times height.
        max_text_bytes: longest text.
    """

    max_pixels: int = DEFAULT_MAX_PIXELS
    max_text_bytes: int = DEFAULT_MAX_TEXT_BYTES


class Backbone(Protocol):
    """What every method needs of a frozen network.

    Attributes:
        id: model name, input size and weights digest; generations are bound to it.
        device, dtype: where and in which format it computes.
        content_types: media types of the payloads it can decode.
        limits: bounds on them; the owner may set others.
    """

    id: str
    device: torch.device
    dtype: torch.dtype
    content_types: frozenset[str]
    limits: DecodeLimits

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Decode a payload to one input row.

        Raises:
            InputError: the payload is not what its content type says, or breaks a limit.
        """
        ...

    def blank(self, rows: int) -> Tensor:
        """Return a batch of inputs that mean nothing, for warming up."""
        ...

    def features(self, inputs: Tensor) -> Tensor:
        """Return float32 features (B, D) for a batch of inputs."""
        ...


class FrozenModel:
    """Any timm vision model: pooled features of its last layer.

    Args:
        id: model name, input size and weights digest.
        model: a timm model without classifier, in evaluation mode.
        image_size: side of the square input, pixels.
        mean, std: per-channel normalisation of inputs scaled to 0..1.
        device, dtype: where and in which format it computes.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - the manifest's word
        model: nn.Module,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.id = id
        self.model = model.eval().requires_grad_(False).to(device=device, dtype=dtype)
        self.image_size = image_size
        self.device = device
        self.dtype = dtype
        self.content_types = frozenset(IMAGE_FORMATS)
        self.limits = DecodeLimits()
        self._mean = torch.tensor(mean, device=device).mul(255).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).mul(255).view(1, 3, 1, 1)

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Decode an image payload to uint8 (3, S, S).

        Raises:
            InputError: the payload is not what its content type says, or breaks a limit.
        """
        return square(open_image(payload, content_type, self.limits.max_pixels), self.image_size)

    def blank(self, rows: int) -> Tensor:
        """Return black images, uint8 (rows, 3, S, S)."""
        return torch.zeros(rows, 3, self.image_size, self.image_size, dtype=torch.uint8)

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 images (B, 3, S, S) into normalised ones of the backbone's type and device."""
        if images.dtype != torch.uint8 or images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"expected uint8 images (B, 3, {self.image_size}, {self.image_size}), "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        return ((images.to(self.device).float() - self._mean) / self._std).to(self.dtype)

    @torch.inference_mode()
    def features(self, inputs: Tensor) -> Tensor:
        """Return pooled features, float32 (B, D)."""
        pooled: Tensor = self.model(self.normalise(inputs))
        return pooled.float()


def in_batches(
    compute: Callable[[int, int], Result], count: int, batch_size: int, device: torch.device
) -> list[Result]:
    """Call `compute(start, stop)` over `count` items; halve the batch when the GPU's memory runs out.

    Raises:
        torch.OutOfMemoryError: not even a single item fits.
    """
    results: list[Result] = []
    start = 0
    while start < count:
        stop = min(start + batch_size, count)
        try:
            results.append(compute(start, stop))
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size = max(1, batch_size // 2)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        start = stop
    return results
