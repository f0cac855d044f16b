"""Where to compute, and in which number format."""

from __future__ import annotations

import torch


def choose_device(name: str) -> torch.device:
    """Resolve `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ValueError: CUDA was asked for by name and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {name!r}: this machine has no CUDA device that torch can use; use 'auto' or 'cpu'"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve `auto`, `float32` or `bfloat16`: `auto` is bfloat16 where the hardware computes with it.

    Without native support bfloat16 is emulated and several times slower than float32.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = any(
        bool(probe()) for probe in (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    )
    return torch.bfloat16 if native else torch.float32
