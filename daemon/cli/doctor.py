"""Examine the machine before a user has to: packages, device, backbone, disk, streams."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator

from rich.text import Text

from daemon.cli.client import console
from daemon.settings import EmbeddedSource, FolderSource, KafkaSource, Settings

# State, generations and checkpoints of a small stream; below it the daemon would soon stop.
LEAST_FREE_BYTES = 2 * 2**30
CONNECT_SECONDS = 3.0

Finding = tuple[str, bool, str]


def check_learners(settings: Settings) -> list[str]:
    """Return what is wrong with the methods' options, one line each."""
    from cl_engine.learners.registry import check_options

    wrong = []
    for name, stream in settings.streams.items():
        try:
            check_options(stream.learner.method, stream.learner.options)
        except ValueError as error:
            wrong.append(f"streams.{name}.learner.options: {error}")
    return wrong


def examine(settings: Settings) -> bool:
    """Print every finding and return whether all is well."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _packages,
        _device,
        _learners,
        _disk,
        _streams,
    )
    well = True
    for check in checks:
        for name, good, text in check(settings):
            well = well and good
            mark = ("ok  ", "green") if good else ("FAIL", "red")
            console.print(Text.assemble(mark, f" {name}: {text}"))
    return well


def _packages(settings: Settings) -> Iterator[Finding]:
    del settings
    try:
        import timm
        import torch
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" in str(error):
            yield (
                "packages",
                False,
                "torch and torchvision are of different builds (one for CPU, one for CUDA): "
                "install both again from the same index",
            )
            return
        raise
    yield (
        "packages",
        True,
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}",
    )


def _device(settings: Settings) -> Iterator[Finding]:
    from cl_engine.errors import AssetError
    from daemon.backbone import load

    try:
        with console.status("loading the backbone; the first time it is fetched"):
            backbone = load(settings.backbone, settings.limits)
    except (AssetError, ValueError) as error:
        yield "backbone", False, str(error)
        return
    yield "device", True, f"{backbone.device}, {str(backbone.dtype).removeprefix('torch.')}"
    yield "backbone", True, backbone.id


def _learners(settings: Settings) -> Iterator[Finding]:
    wrong = check_learners(settings)
    for line in wrong:
        yield "learner", False, line
    if not wrong:
        yield (
            "learner",
            True,
            ", ".join(f"{name}: {s.learner.method}" for name, s in settings.streams.items()),
        )


def _disk(settings: Settings) -> Iterator[Finding]:
    directory = settings.state_directory.resolve()
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    yield "disk", free >= LEAST_FREE_BYTES, f"{free / 2**30:.1f} GiB free at {settings.state_directory}"


def _streams(settings: Settings) -> Iterator[Finding]:
    for name, stream in settings.streams.items():
        source = stream.source
        if isinstance(source, EmbeddedSource):
            yield f"stream {name}", True, "embedded topic in the state directory"
        elif isinstance(source, FolderSource):
            found = source.path.is_dir()
            yield f"stream {name}", found, f"{source.path}" if found else f"{source.path} is not a directory"
        else:
            assert isinstance(source, KafkaSource)
            reached = [server for server in source.bootstrap_servers if _answers(server)]
            text = ", ".join(reached) if reached else f"none of {', '.join(source.bootstrap_servers)} answers"
            yield f"stream {name}", bool(reached), text


def _answers(server: str) -> bool:
    host, _, port = server.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False
