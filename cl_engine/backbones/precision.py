"""Where to compute, and in which number format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def choose_device(name: str) -> torch.device:
    """Resolve `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ValueError: not a device's name, or CUDA was asked for by name and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} must be 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {name!r}: this machine has no CUDA device that torch can use; use 'auto' or 'cpu'"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve `auto`, `float32` or `bfloat16`: `auto` is bfloat16 where the hardware computes with it.

    Without native support bfloat16 is emulated and several times slower than float32.

    Raises:
        ValueError: none of the three.
    """
    formats = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name in formats:
        return formats[name]
    if name != "auto":
        raise ValueError(f"dtype {name!r} must be 'auto', 'float32' or 'bfloat16'")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = any(
        bool(probe()) for probe in (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    )
    return torch.bfloat16 if native else torch.float32


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Have GPUs since Ampere multiply and convolve float32 tensors in tf32, or not; a CPU never does.

    PyTorch by itself does so for convolutions alone. The choice is the process's: it is put back at the end.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = tf32
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
