"""A frozen timm model as a source of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from cl_engine.images import DEFAULT_MAX_PIXELS, open_image, square

Result = TypeVar("Result")


class Backbone(Protocol):
    """What every method needs of a frozen network."""

    @property
    def id(self) -> str:
        """Model name, input size and weights digest; generations are bound to it."""
        ...

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Decode a payload to one input row."""
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
        self.max_pixels = DEFAULT_MAX_PIXELS
        self._mean = torch.tensor(mean, device=device).mul(255).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).mul(255).view(1, 3, 1, 1)

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Decode an image payload to uint8 (3, S, S).

        Raises:
            InputError: the payload is not what its content type says, or breaks a limit.
        """
        return square(open_image(payload, content_type, self.max_pixels), self.image_size)

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
