"""Where the tests' kcat comes from."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from platformdirs import user_cache_path

# kcat and those of its libraries that a machine without it is not likely to have.
PACKAGES = ("kcat", "librdkafka1", "libyajl2")
FETCH_SECONDS = 120


class NoKcat(Exception):
    """No kcat can be had here; the message says what is missing."""


@dataclass(frozen=True)
class Kcat:
    """A kcat that runs.

    Attributes:
        path: the binary.
        environment: what it needs beside the process's own, to find its libraries.
    """

    path: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """Run it and return what it wrote; fail with what it said if it fails."""
        done = subprocess.run(
            [self.path, *arguments],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=60,
            env={**os.environ, **self.environment},
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout


def find_kcat() -> Kcat:
    """Return the installed kcat, else one from Debian's packages, unpacked once into the user's cache.

    apt checks what it fetches against the distribution's signed index; nothing is installed, so no
    privilege is needed.

    Raises:
        NoKcat: it is not installed, and cannot be fetched or does not run here.
    """
    installed = shutil.which("kcat")
    if installed is not None:
        return Kcat(installed)
    apt = shutil.which("apt-get")
    if apt is None or shutil.which("dpkg-deb") is None:
        raise NoKcat("kcat is not installed, and there is no apt-get with dpkg-deb to fetch it")
    cache = user_cache_path("accrete") / "test-kcat"
    cache.mkdir(parents=True, exist_ok=True)
    # Test runs beside each other must not fetch into one directory at once.
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "root").is_dir():
            _fetch(apt, cache)
    libraries = [str(path.parent) for path in (cache / "root").rglob("librdkafka.so.1")]
    kcat = Kcat(str(cache / "root" / "usr" / "bin" / "kcat"), {"LD_LIBRARY_PATH": ":".join(libraries)})
    try:
        kcat.run("-V")
    except (AssertionError, OSError) as error:
        raise NoKcat(f"the kcat of Debian's packages does not run here: {error}") from error
    return kcat


def _fetch(apt: str, cache: Path) -> None:
    partial = cache / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    done = subprocess.run(
        [apt, "download", *PACKAGES],
        cwd=partial,
        capture_output=True,
        text=True,
        check=False,
        timeout=FETCH_SECONDS,
    )
    if done.returncode != 0:
        shutil.rmtree(partial, ignore_errors=True)
        raise NoKcat(
            f"kcat is not installed, and apt cannot fetch it: {done.stderr.strip()[-300:]}; "
            "`apt-get update` may be needed once"
        )
    for package in sorted(partial.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(partial / "root")], check=True)
    (partial / "root").rename(cache / "root")
    shutil.rmtree(partial)
