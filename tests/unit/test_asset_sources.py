"""The registries' clients, played by small scripts on PATH."""

from __future__ import annotations

import importlib.util
import subprocess
import venv
from pathlib import Path

import pytest

from cl_engine.assets.sources import ClientMissing, DebianPackage, NpmPackage, PyPIWheel
from cl_engine.errors import AssetError

WHEEL = PyPIWheel("some-thing", "1.0", "some_thing-1.0-py3-none-any.whl", "0" * 64, 3, ("a",))
NPM = NpmPackage("thing.js", "1.0.6", "thing.js-1.0.6.tgz", "0" * 64, 3, ("a",))
DEBIAN = DebianPackage("dataset-thing", "0.1-1", "dataset-thing_0.1-1_all.deb", "0" * 64, 3, ("a",))


@pytest.fixture
def bin_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a PATH that holds nothing but what a test puts there, and hide our own pip."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else found(name))
    return directory


def script(path: Path, body: str) -> None:
    """Write an executable shell script."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_pip_fetches_wheels_only_and_no_dependencies(bin_directory: Path, tmp_path: Path) -> None:
    """The command line runs no build script, and its wheel is found."""
    script(
        bin_directory / "pip",
        '[ "$1" = --version ] && exit 0\n'
        f'echo "$@" > {tmp_path}/arguments\n'
        'while [ "$1" != --dest ]; do shift; done\n'
        'echo abc > "$2/some_thing-1.0-py3-none-any.whl"',
    )
    into = tmp_path / "into"
    assert WHEEL.download(into, lambda _: None).name == WHEEL.archive
    arguments = (tmp_path / "arguments").read_text()
    assert arguments.startswith("download --no-deps --pre --only-binary :all: --ignore-requires-python ")
    assert arguments.endswith(" some-thing==1.0\n")


def test_a_broken_pip_is_passed_over(bin_directory: Path, tmp_path: Path) -> None:
    """A pip that does not answer (an orphaned shim) gives way to uvx."""
    script(bin_directory / "pip", "exit 127")
    script(
        bin_directory / "uvx",
        '[ "$2" = --version ] && exit 0\n'
        'while [ "$1" != --dest ]; do shift; done\n'
        'echo abc > "$2/some_thing-1.0-py3-none-any.whl"',
    )
    assert WHEEL.download(tmp_path / "into", lambda _: None).name == WHEEL.archive


def test_no_pip_at_all_names_the_remedy(
    bin_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not even ensurepip is there, the message says what to run."""

    def without_ensurepip(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "ensurepip")

    monkeypatch.setattr(venv, "create", without_ensurepip)
    with pytest.raises(ClientMissing, match="-m ensurepip"):
        WHEEL.download(tmp_path / "into", lambda _: None)


def test_npm_packs_without_running_scripts(bin_directory: Path, tmp_path: Path) -> None:
    """`npm pack` is called for the exact version with its scripts off."""
    script(
        bin_directory / "npm",
        f'echo "$@" > {tmp_path}/arguments\n'
        'for a; do case $a in --pack-destination=*) echo abc > "${a#*=}/thing.js-1.0.6.tgz";; esac; done',
    )
    assert NPM.download(tmp_path / "into", lambda _: None).name == NPM.archive
    arguments = (tmp_path / "arguments").read_text()
    assert arguments.startswith("pack thing.js@1.0.6 ")
    assert "--ignore-scripts" in arguments


def test_a_missing_npm_names_the_remedy(bin_directory: Path, tmp_path: Path) -> None:
    """Nothing is retried without npm."""
    with pytest.raises(ClientMissing, match=r"npm is not on PATH: install Node\.js"):
        NPM.download(tmp_path / "into", lambda _: None)


def test_apt_is_needed_for_a_debian_package(bin_directory: Path, tmp_path: Path) -> None:
    """Other systems get a clear answer."""
    with pytest.raises(ClientMissing, match="only Debian"):
        DEBIAN.download(tmp_path / "into", lambda _: None)


def test_apt_downloads_the_exact_version(bin_directory: Path, tmp_path: Path) -> None:
    """`apt-get download` is called in a directory of its own."""
    script(bin_directory / "dpkg-deb", "exit 0")
    script(
        bin_directory / "apt-get",
        '[ "$*" = "download dataset-thing=0.1-1" ] && echo abc > dataset-thing_0.1-1_all.deb',
    )
    assert DEBIAN.download(tmp_path / "into", lambda _: None).name == DEBIAN.archive


def test_a_failing_client_is_quoted(bin_directory: Path, tmp_path: Path) -> None:
    """The last lines the client said are in the error."""
    script(bin_directory / "npm", 'echo "npm error code ENOTFOUND" >&2; exit 1')
    with pytest.raises(AssetError, match="npm ended with status 1: npm error code ENOTFOUND"):
        NPM.download(tmp_path / "into", lambda _: None)


def test_a_client_that_leaves_nothing_is_an_error(bin_directory: Path, tmp_path: Path) -> None:
    """Success without a file is not success."""
    script(bin_directory / "npm", "exit 0")
    with pytest.raises(AssetError, match="left 0 files"):
        NPM.download(tmp_path / "into", lambda _: None)
