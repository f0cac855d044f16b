"""Fetch, verify and convert an asset once; later calls find it in the cache and need no network."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog
from platformdirs import user_cache_dir

from cl_engine.assets.archives import check_digest, read_members, sha256_of
from cl_engine.assets.asset import Asset
from cl_engine.assets.sources import ClientMissing, Source
from cl_engine.errors import AssetError

log = structlog.get_logger(__name__)

OnProgress = Callable[[str, int, int], None]
"""Called with the step ("download" or "convert"), what is done of it, and its total, in bytes."""

MANIFEST = "asset.json"
BY_HAND = "archives"
_RETRY_DELAYS = (1.0, 3.0)


def cache_directory() -> Path:
    """Locate the asset cache: `ACCRETE_CACHE` where it is set, else the user's cache directory."""
    chosen = os.environ.get("ACCRETE_CACHE")
    return Path(chosen).expanduser() if chosen else Path(user_cache_dir("accrete"))


def fetch_asset(
    asset: Asset,
    cache: Path,
    on_progress: OnProgress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Return the directory of an asset's converted files; fetch and convert it first if need be.

    Two processes that ask at once fetch once; what is there is always whole, because the directory
    appears by a rename. An archive put by hand into `CACHE/archives/` is used before any registry.

    Args:
        asset: the catalogue's entry.
        cache: the cache directory, made if absent.
        on_progress: told about the bytes of each step.
        sleep: waits between attempts; tests pass a fake.

    Raises:
        AssetError: every source failed, the archive could not be converted, or the cache directory
            cannot be made.
    """
    target = cache / asset.directory
    if is_complete(target):
        return target
    report = on_progress or (lambda _step, _done, _total: None)
    _make_directory(cache)
    unfinished = f".fetch-{asset.directory}-"
    with _lock(cache / f".{asset.directory}.lock"):
        if is_complete(target):
            return target
        for left_over in cache.glob(f"{unfinished}*"):
            shutil.rmtree(left_over)  # Of a process that was killed: we hold its lock.
        with tempfile.TemporaryDirectory(prefix=unfinished, dir=cache) as scratch:
            archive, source = _obtain(asset, cache, Path(scratch), report, sleep)
            made = Path(scratch) / "made"
            made.mkdir()
            _convert(asset, source, archive, made, report)
            if target.exists():
                shutil.rmtree(target)  # Left over from a user's deletion of some of its files.
            made.replace(target)
    log.info("asset.fetched", asset=asset.name, source=source.describe(), directory=str(target))
    return target


def is_complete(directory: Path) -> bool:
    """Tell whether every file of a converted asset is there, by name and length."""
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        return all((directory / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, LookupError, TypeError):
        return False  # Absent, cut short or not ours: in each case it is made again.


def verify(directory: Path) -> None:
    """Compare the digests of a converted asset's files with those recorded when it was made.

    Raises:
        AssetError: a file was changed since.
    """
    files = json.loads((directory / MANIFEST).read_text())["files"]
    for name, entry in files.items():
        if sha256_of(directory / name) != entry["sha256"]:
            raise AssetError(
                f"{directory / name} has changed since it was made: delete {directory}, fetch again"
            )


def _obtain(
    asset: Asset, cache: Path, scratch: Path, report: OnProgress, sleep: Callable[[float], None]
) -> tuple[Path, Source]:
    failures: list[str] = []
    for source in asset.sources:
        by_hand = cache / BY_HAND / source.archive
        if by_hand.is_file():
            try:
                check_digest(by_hand, source.sha256)
            except AssetError as error:
                failures.append(f"{by_hand}: {error}")
            else:
                return by_hand, source
    for index, source in enumerate(asset.sources):
        directory = scratch / f"source-{index}"
        try:
            return _download(source, directory, report, sleep), source
        except AssetError as error:
            failures.append(f"{source.describe()}: {error}")
    raise AssetError(_what_to_do(asset, cache, failures))


def _download(source: Source, directory: Path, report: OnProgress, sleep: Callable[[float], None]) -> Path:
    def on_bytes(done: int) -> None:
        report("download", min(done, source.size), source.size)

    for delay in (*_RETRY_DELAYS, None):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        on_bytes(0)
        try:
            archive = source.download(directory, on_bytes)
            check_digest(archive, source.sha256)
        except ClientMissing:
            raise
        except AssetError as error:
            if delay is None:
                raise
            log.warning("asset.retry", source=source.describe(), seconds=delay, error=str(error))
            sleep(delay)
        else:
            on_bytes(source.size)
            return archive
    raise AssertionError("the last attempt either returns or raises")


def _convert(asset: Asset, source: Source, archive: Path, made: Path, report: OnProgress) -> None:
    report("convert", 0, source.size)
    try:
        asset.convert(read_members(archive, source.members), made)
    except (KeyError, ValueError, OSError) as error:
        raise AssetError(f"{asset.name}: {archive.name} could not be converted: {error!r}") from error
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(made.iterdir())
    }
    manifest = {"asset": asset.name, "source": source.describe(), "licence": asset.licence, "files": files}
    (made / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for path in made.iterdir():
        path.chmod(0o644)  # A cache filled by one user (an image's build) is read by another.
        _sync(path)
    report("convert", source.size, source.size)


def _make_directory(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(
            f"the asset cache {cache} cannot be made ({error.strerror}): "
            "set ACCRETE_CACHE to a directory that can be written"
        ) from error


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock that the kernel releases even if this process is killed."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _what_to_do(asset: Asset, cache: Path, failures: Sequence[str]) -> str:
    tried = "\n".join(f"  - {failure}" for failure in failures)
    archives = "\n".join(
        f"  - {source.archive} (sha256 {source.sha256}), from {source.describe()}" for source in asset.sources
    )
    return (
        f"{asset.name} could not be fetched. Tried:\n{tried}\n"
        f"Without a network: put one of these files into {cache / BY_HAND} and run again:\n{archives}"
    )
