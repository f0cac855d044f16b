"""Fetching an asset: verified, once, whole or not at all, and helpful when it cannot be done."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest

from cl_engine.assets.archives import Members
from cl_engine.assets.fetch import cache_directory, fetch_asset, is_complete, verify
from cl_engine.assets.sources import ClientMissing
from cl_engine.errors import AssetError
from tests.support.asset_sources import FakeSource, asset_from, copy_members, zip_of

ARCHIVE = zip_of({"a": b"first ", "b": b"second"})


def refuse_sleep(seconds: float) -> None:
    """Stand in for `time.sleep` where nothing may wait."""
    raise AssertionError(f"waited {seconds} seconds")


def kept(cache: Path) -> list[str]:
    """Names in the cache but for locks."""
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def test_first_fetch_converts_and_the_second_needs_no_source(tmp_path: Path) -> None:
    """What was made once is found again without a download."""
    source = FakeSource(ARCHIVE)
    first = fetch_asset(asset_from(source), tmp_path)
    assert (first / "joined").read_bytes() == b"first second"
    assert fetch_asset(asset_from(source), tmp_path) == first
    assert source.downloads == 1
    assert kept(tmp_path) == [first.name]


def test_a_raised_revision_converts_anew(tmp_path: Path) -> None:
    """An old cache is never read by a newer converter's reader."""
    source = FakeSource(ARCHIVE)
    old = fetch_asset(asset_from(source), tmp_path)
    assert fetch_asset(asset_from(source, revision=2), tmp_path) != old
    assert source.downloads == 2


def test_another_content_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    """A checksum mismatch leaves nothing in the cache and names both digests."""
    source = FakeSource(ARCHIVE, pinned=b"something else")
    waits: list[float] = []
    with pytest.raises(AssetError, match=f"the catalogue pins {source.sha256}"):
        fetch_asset(asset_from(source), tmp_path, sleep=waits.append)
    assert kept(tmp_path) == []
    assert waits == [1.0, 3.0]


def test_a_failed_download_is_tried_again(tmp_path: Path) -> None:
    """Two network failures are survived."""
    source = FakeSource(ARCHIVE, failures=(AssetError("reset"), AssetError("timeout")))
    waits: list[float] = []
    fetch_asset(asset_from(source), tmp_path, sleep=waits.append)
    assert source.downloads == 3
    assert waits == [1.0, 3.0]


def test_a_missing_client_is_not_waited_for_and_the_next_source_serves(tmp_path: Path) -> None:
    """Sources are tried in order."""
    first = FakeSource(ARCHIVE, name="first", failures=(ClientMissing("npm is not on PATH"),))
    second = FakeSource(ARCHIVE, name="second")
    fetch_asset(asset_from(first, second), tmp_path, sleep=refuse_sleep)
    assert (first.downloads, second.downloads) == (1, 1)


def test_the_final_error_says_what_was_tried_and_what_to_do(tmp_path: Path) -> None:
    """Each source, its failure, and the file to put where by hand."""
    first = FakeSource(ARCHIVE, name="first", failures=(ClientMissing("npm is not on PATH"),))
    second = FakeSource(ARCHIVE, name="second", failures=(AssetError("no route"),) * 3)
    with pytest.raises(AssetError) as caught:
        fetch_asset(asset_from(first, second), tmp_path, sleep=lambda _: None)
    said = str(caught.value)
    assert "registry of first: npm is not on PATH" in said
    assert "registry of second: no route" in said
    assert str(tmp_path / "archives") in said
    assert f"first.zip (sha256 {first.sha256})" in said


def test_an_archive_put_by_hand_is_used_first(tmp_path: Path) -> None:
    """The offline remedy of the error text works."""
    source = FakeSource(ARCHIVE)
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / source.archive).write_bytes(ARCHIVE)
    fetch_asset(asset_from(source), tmp_path)
    assert source.downloads == 0
    assert (tmp_path / "archives" / source.archive).is_file()


def test_a_wrong_archive_put_by_hand_is_passed_over(tmp_path: Path) -> None:
    """A hand-made mistake falls back to the registry."""
    source = FakeSource(ARCHIVE)
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / source.archive).write_bytes(b"half of i")
    fetch_asset(asset_from(source), tmp_path)
    assert source.downloads == 1


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path) -> None:
    """The directory appears whole or not at all."""

    def break_half_way(members: Members, directory: Path) -> None:
        copy_members(members, directory)
        raise ValueError("not the export this was written for")

    source = FakeSource(ARCHIVE)
    with pytest.raises(AssetError, match=r"could not be converted.*not the export"):
        fetch_asset(asset_from(source, convert=break_half_way), tmp_path)
    assert kept(tmp_path) == []
    assert is_complete(fetch_asset(asset_from(source), tmp_path))


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    """A file that was cut short or deleted is noticed by the next call."""
    source = FakeSource(ARCHIVE)
    directory = fetch_asset(asset_from(source), tmp_path)
    (directory / "joined").write_bytes(b"first")
    assert not is_complete(directory)
    assert (fetch_asset(asset_from(source), tmp_path) / "joined").read_bytes() == b"first second"
    (directory / "joined").unlink()
    fetch_asset(asset_from(source), tmp_path)
    assert source.downloads == 3


def test_an_interrupted_manifest_counts_as_not_there(tmp_path: Path) -> None:
    """A manifest that is not JSON, or not ours, makes the asset be fetched again."""
    source = FakeSource(ARCHIVE)
    directory = fetch_asset(asset_from(source), tmp_path)
    for damage in ("", "[]", "{}"):
        (directory / "asset.json").write_text(damage)
        assert not is_complete(directory)
    fetch_asset(asset_from(source), tmp_path)
    assert source.downloads == 2


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    """Half a download does not stay for ever; another asset's is left alone."""
    asset = asset_from(FakeSource(ARCHIVE))
    for name in (f".fetch-{asset.directory}-x", ".fetch-other-x"):
        (tmp_path / name / "source-0").mkdir(parents=True)
    directory = fetch_asset(asset, tmp_path)
    assert kept(tmp_path) == [".fetch-other-x", directory.name]


def test_other_users_may_read_the_cache(tmp_path: Path) -> None:
    """An image's build fills the cache as root, the daemon reads it as somebody else."""

    def keep_private(members: Members, directory: Path) -> None:
        copy_members(members, directory)
        (directory / "joined").chmod(0o600)

    directory = fetch_asset(asset_from(FakeSource(ARCHIVE), convert=keep_private), tmp_path)
    assert (directory / "joined").stat().st_mode & 0o777 == 0o644


def test_a_cache_that_cannot_be_made_names_the_variable(tmp_path: Path) -> None:
    """The remedy is to choose another directory."""
    (tmp_path / "file").write_text("")
    with pytest.raises(AssetError, match="set ACCRETE_CACHE"):
        fetch_asset(asset_from(FakeSource(ARCHIVE)), tmp_path / "file" / "cache")


def test_verify_finds_a_changed_byte(tmp_path: Path) -> None:
    """A change that keeps the length is found by the digest."""
    directory = fetch_asset(asset_from(FakeSource(ARCHIVE)), tmp_path)
    verify(directory)
    (directory / "joined").write_bytes(b"first sec0nd")
    with pytest.raises(AssetError, match="has changed"):
        verify(directory)


def test_the_lock_is_held_while_downloading_and_released_after(tmp_path: Path) -> None:
    """Another process that asks meanwhile would wait."""
    held: list[bool] = []

    def is_locked() -> bool:
        (lock,) = tmp_path.glob(".thing-*.lock")
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    fetch_asset(asset_from(FakeSource(ARCHIVE, during=lambda: held.append(is_locked()))), tmp_path)
    assert held == [True]
    assert not is_locked()


def test_callers_at_once_share_one_download(tmp_path: Path) -> None:
    """Each gets the same directory."""
    source = FakeSource(ARCHIVE)
    start = threading.Barrier(4)
    results: list[Path] = []

    def ask() -> None:
        start.wait()
        results.append(fetch_asset(asset_from(source), tmp_path))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.downloads == 1
    assert len(results) == 4
    assert len(set(results)) == 1


def test_progress_reaches_the_total_of_each_step(tmp_path: Path) -> None:
    """Bytes never exceed the total, and both steps end at it."""
    told: list[tuple[str, int, int]] = []
    source = FakeSource(ARCHIVE)
    fetch_asset(asset_from(source), tmp_path, lambda *event: told.append(event))
    assert told == [
        ("download", 0, source.size),
        ("download", source.size // 2, source.size),
        ("download", source.size, source.size),
        ("convert", 0, source.size),
        ("convert", source.size, source.size),
    ]


def test_the_cache_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`ACCRETE_CACHE` wins over the user's cache directory; empty counts as unset."""
    monkeypatch.setenv("ACCRETE_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.setenv("ACCRETE_CACHE", "")
    assert cache_directory().name == "accrete"
