"""What a measurement must state about where it was made."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

# Everything that changes how fast or how well the daemon works.
PACKAGES = (
    "accrete",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "onnxruntime",
    "fastapi",
    "uvicorn",
    "kafka-python",
)


def machine() -> dict[str, object]:
    """Describe the machine: processor, cores, memory, accelerator."""
    return {
        "processor": _processor(),
        "cores": len(psutil.Process().cpu_affinity()),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """List the versions of Python and of the packages that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """Name the processor as the kernel does; platform.processor() is empty on most Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
