"""The command line without a daemon: configuration, producing, and what it says when nobody answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from daemon.cli.client import DaemonClient
from daemon.cli.main import app
from daemon.clock import SystemClock
from daemon.messages.parse import parse_record
from daemon.settings import LimitSettings
from daemon.sources.log import EmbeddedLog
from tests.support.ingest import image


def configuration(tmp_path: Path, **sections: Any) -> Path:
    """Write a configuration whose state is in the test's directory."""
    path = tmp_path / "accrete.yaml"
    path.write_text(yaml.safe_dump({"state_directory": str(tmp_path / "state"), **sections}))
    return path


def accrete(*arguments: object) -> Result:
    """Run a command, its lines as wide as they like."""
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "500", "TERM": "dumb"})


def pictures(root: Path, label: str, count: int, first: int = 0) -> Path:
    """Write small images into the directory of a class."""
    directory = root / label
    directory.mkdir(parents=True, exist_ok=True)
    for n in range(first, first + count):
        (directory / f"{n}.png").write_bytes(image(n))
    return directory


def produced(tmp_path: Path, topic: str = "default") -> list[tuple[str, str]]:
    """Return label and id of every sample in a topic."""
    log = EmbeddedLog(tmp_path / "state" / "topics.db", SystemClock())
    records = log.read(topic, 0, 0, 1000)
    log.close()
    return [(s.label, s.id) for r in records for s in parse_record(r, LimitSettings(), None).samples]


def test_config_check_lists_every_mistake_at_once(tmp_path: Path) -> None:
    """Each line names the field, the value and what is wrong; the status is 2."""
    path = configuration(
        tmp_path,
        streams={"Bad Name": {}, "s": {"holdout_fraction": 2, "trigger": {"quiet_seconds": -1}}},
        serving={"port": 99999, "colour": "[/red]"},
        nonsense=1,
    )
    result = accrete("config", "check", "--config", path)
    assert result.exit_code == 2
    for words in (
        "streams.Bad Name",
        "streams.s.holdout_fraction",
        "streams.s.trigger.quiet_seconds",
        "serving.port",
        "99999",
        "serving.colour",
        "'[/red]'",
        "nonsense",
    ):
        assert words in result.output


def test_config_check_asks_the_methods(tmp_path: Path) -> None:
    """A wrong option of a learner is found without starting anything, for every stream."""
    wrong = {"learner": {"options": {"adapter_blocks": 0, "wings": 2}}}
    result = accrete("config", "check", "-c", configuration(tmp_path, streams={"a": wrong, "b": wrong}))
    assert result.exit_code == 2
    for words in ("streams.a.learner", "streams.b.learner", "adapter_blocks", "wings"):
        assert words in result.output


def test_config_check_lists_the_methods_mistakes_among_all_others(tmp_path: Path) -> None:
    """One run shows a learner's wrong option and a wrong port; an unknown method does not hide them."""
    streams = {
        "a": {"learner": {"options": {"wings": 2}}},
        "b": {"learner": {"method": "magic", "options": {"wand": 1}}},
    }
    result = accrete("config", "check", "-c", configuration(tmp_path, streams=streams, serving={"port": -1}))
    assert result.exit_code == 2
    for words in ("streams.a.learner.options", "wings", "streams.b.learner.method", "serving.port"):
        assert words in result.output


def test_config_check_of_a_good_file(tmp_path: Path) -> None:
    """The status is 0."""
    assert accrete("config", "check", "-c", configuration(tmp_path)).exit_code == 0


def test_config_check_of_a_missing_file(tmp_path: Path) -> None:
    """The message names the file."""
    result = accrete("config", "check", "-c", tmp_path / "nowhere.yaml")
    assert result.exit_code == 2
    assert "nowhere.yaml" in result.output


def test_config_show_masks_secrets(tmp_path: Path) -> None:
    """The token is not printed; the methods' defaults are."""
    path = configuration(
        tmp_path,
        serving={"token": "hush-hush"},
        streams={"s": {"learner": {"options": {"adapter_blocks": 3}}}},
    )
    result = accrete("config", "show", "-c", path)
    assert result.exit_code == 0
    assert "hush-hush" not in result.output
    shown = yaml.safe_load(result.output)
    assert set(shown["serving"]["token"]) == {"*"}
    options = shown["streams"]["s"]["learner"]["options"]
    assert options["adapter_blocks"] == 3
    assert "explore_epochs" in options


@pytest.mark.parametrize("batch", [1, 4])
def test_produce_writes_to_the_embedded_topic(tmp_path: Path, batch: int) -> None:
    """A directory of classes becomes labelled samples, raw or in class batches."""
    root = tmp_path / "pictures"
    pictures(root, "cat", 6)
    pictures(root, "dog", 5, first=50)
    result = accrete("produce", root, "-c", configuration(tmp_path), "--batch", batch)
    assert result.exit_code == 0, result.output
    assert "11 samples sent to default" in result.output
    samples = produced(tmp_path)
    assert sorted(label for label, _ in samples) == ["cat"] * 6 + ["dog"] * 5
    assert len(set(samples)) == 11


def test_produce_twice_gives_the_same_ids(tmp_path: Path) -> None:
    """A repetition, in whatever batches, is recognised by the store: it holds the same ids."""
    root = pictures(tmp_path / "pictures", "cat", 5)
    path = configuration(tmp_path)
    accrete("produce", root, "-c", path)
    accrete("produce", root, "-c", path, "--batch", 3)
    samples = produced(tmp_path)
    assert len(samples) == 10
    assert len(set(samples)) == 5


def test_produce_files_with_a_label(tmp_path: Path) -> None:
    """A label given by hand wins over the directory's name; hidden files are left out."""
    directory = pictures(tmp_path / "pictures", "cat", 2)
    (directory / ".hidden.png").write_bytes(image(9))
    result = accrete(
        "produce", directory, directory / "0.png", "--label", "[/tiger]", "-c", configuration(tmp_path)
    )
    assert result.exit_code == 0, result.output
    assert [label for label, _ in produced(tmp_path)] == ["[/tiger]"] * 2


@pytest.mark.parametrize("batch", [1, 2])
def test_produce_texts(tmp_path: Path, batch: int) -> None:
    """A .txt file is a text of its directory's class, each row of a table a text of its own."""
    root = tmp_path / "texts"
    (root / "lost_card").mkdir(parents=True)
    (root / "lost_card" / "1.txt").write_text("my card is gone")
    (root / "more.tsv").write_text('where is it?\tlost_card\n"a ""quoted""\ttext"\tgrün\n', encoding="utf-8")
    result = accrete("produce", root, "-c", configuration(tmp_path), "--batch", batch)
    assert "3 samples sent to default" in result.output
    log = EmbeddedLog(tmp_path / "state" / "topics.db", SystemClock())
    parsed = [parse_record(r, LimitSettings(), None) for r in log.read("default", 0, 0, 10)]
    log.close()
    found = [(s.label, s.content_type, s.payload.decode()) for p in parsed for s in p.samples]
    assert sorted(found) == [
        ("grün", "text/plain", 'a "quoted"\ttext'),
        ("lost_card", "text/plain", "my card is gone"),
        ("lost_card", "text/plain", "where is it?"),
    ]


@pytest.mark.parametrize(
    ("content", "words"), [(b"text\tlabel\nonly a text\n", "row 2: 1 columns"), (b"\xff\t1\n", "UTF-8")]
)
def test_produce_refuses_what_is_no_table(tmp_path: Path, content: bytes, words: str) -> None:
    """The message names the row; nothing is produced, not even the rows before it."""
    (tmp_path / "t.tsv").write_bytes(content)
    result = accrete("produce", tmp_path / "t.tsv", "-c", configuration(tmp_path))
    assert result.exit_code == 1
    assert words in result.output
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("sections", "arguments", "words"),
    [
        ({}, ["nowhere"], "no such file or directory"),
        ({}, ["."], "no files in"),
        ({"streams": {"a": {}, "b": {}}}, ["."], "several streams: name one with --stream (a, b)"),
        ({"streams": {"a": {}}}, [".", "--stream", "z"], "no stream 'z' is configured: use one of a"),
        (
            {"streams": {"a": {"source": {"kind": "folder", "path": "watched"}}}},
            ["."],
            "watches watched: put the files there",
        ),
    ],
)
def test_produce_says_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, Any],
    arguments: list[str],
    words: str,
) -> None:
    """One sentence and status 1, and nothing is produced."""
    path = configuration(tmp_path, **sections)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    result = accrete("produce", *arguments, "-c", path)
    assert result.exit_code == 1
    assert words in result.output
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "command", ["status", "sessions", "classes", "generations", "decisions", "flush", "pause", "rollback"]
)
def test_commands_say_that_no_daemon_runs(tmp_path: Path, command: str) -> None:
    """Each names the state directory and what to do."""
    result = accrete(command, "-c", configuration(tmp_path))
    assert result.exit_code == 1
    assert "no daemon runs on" in result.output
    assert "accreted --config FILE" in result.output


def test_an_address_where_nobody_answers(tmp_path: Path) -> None:
    """The message says which address."""
    result = accrete("status", "-c", configuration(tmp_path), "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "127.0.0.1:9 does not answer" in result.output


def test_forgetting_a_class_asks_for_confirmation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --yes nothing is asked of the daemon; with it the class is named."""
    posted: list[tuple[str, object]] = []

    def post(_: DaemonClient, what: str, body: object = None) -> dict[str, str]:
        posted.append((what, body))
        return {"reason": "done so"}

    monkeypatch.setattr(DaemonClient, "post", post)
    where = ("-c", configuration(tmp_path), "--url", "http://127.0.0.1:9")
    refused = accrete("forget", "cat", *where)
    assert refused.exit_code == 1
    assert "repeat it with --yes" in refused.output
    assert posted == []
    assert "done so" in accrete("forget", "cat", "--yes", *where).output
    assert "done so" in accrete("remember", "cat", *where).output
    assert posted == [("forget", {"label": "cat"}), ("remember", {"label": "cat"})]


def test_labels_that_look_like_markup_are_shown_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label comes from the stream; `[/b]` is no style, and no fault either."""
    row = {"id": 0, "label": "[/b] [red]fox", "state": "live", "first_seen": 0.0}
    monkeypatch.setattr(DaemonClient, "get", lambda *_, **__: {"classes": [row]})
    result = accrete("classes", "-c", configuration(tmp_path), "--url", "http://127.0.0.1:9")
    assert result.exit_code == 0, result.output
    assert "[/b] [red]fox" in result.output


def test_doctor_finds_what_is_missing(tmp_path: Path) -> None:
    """Every check is made though an earlier one fails: weights, folder and broker are all named."""
    path = configuration(
        tmp_path,
        backbone={"weights": str(tmp_path / "nowhere.safetensors")},
        streams={
            "pictures": {"source": {"kind": "folder", "path": str(tmp_path / "missing")}},
            "kafka": {"source": {"kind": "kafka", "bootstrap_servers": ["127.0.0.1:9"], "topic": "t"}},
            "own": {"learner": {"method": "ncm", "options": {"wings": 2}}},
        },
    )
    result = accrete("doctor", "-c", path)
    assert result.exit_code == 1
    lines = {line[5:].partition(":")[0]: line for line in result.output.splitlines() if ":" in line}
    for name in ("backbone", "learner", "stream pictures", "stream kafka"):
        assert lines[name].startswith("FAIL"), result.output
    for name in ("packages", "disk", "stream own"):
        assert lines[name].startswith("ok"), result.output
    assert "127.0.0.1:9" in lines["stream kafka"]


def test_help_answers_at_once() -> None:
    """Every command is listed, and nothing as slow as torch is imported for it."""
    script = (
        "import sys\nfrom daemon.cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'timm', 'sqlalchemy'} & sys.modules.keys(), 'slow imports'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for name in ("run", "demo", "produce", "status", "rollback", "doctor", "config"):
        assert name in done.stdout
