"""Commands on a stream's topics without a daemon: dead letters, lag, and what only Kafka has."""

from __future__ import annotations

from pathlib import Path

from daemon.clock import SystemClock
from daemon.errors import DeadLetterReason
from daemon.messages.dead_letter import dead_letter_message
from daemon.messages.parse import parse_record
from daemon.settings import LimitSettings
from daemon.sources.base import Message, Place, Record
from daemon.sources.log import EmbeddedLog
from daemon.state import SqlState
from daemon.state.base import NewSample
from tests.support.ingest import image
from tests.unit.test_cli import accrete, configuration


def with_letters(tmp_path: Path) -> Path:
    """Write a bad record and its dead letter, as intake does, and one letter that names another topic."""
    log = EmbeddedLog(tmp_path / "state" / "topics.db", SystemClock())
    bad = Message(b"\x89PNG broken", key=b"k", headers={"label": b"cat", "content-type": b"image/png"})
    log.append("default", [bad])
    (record,) = log.read("default", 0, 0, 1)
    (rejected,) = parse_record(record, LimitSettings(), None).dead
    letter = dead_letter_message(record, rejected)
    forged = Message(b"x", headers=dict(letter.headers) | {"accrete-source-topic": b"payroll"})
    log.append("default.dlq", [letter, forged])
    log.close()
    return configuration(tmp_path)


def records(tmp_path: Path, topic: str) -> list[Record]:
    """Read a topic."""
    log = EmbeddedLog(tmp_path / "state" / "topics.db", SystemClock())
    found = log.read(topic, 0, 0, 100)
    log.close()
    return found


def test_dlq_list_names_reason_and_place(tmp_path: Path) -> None:
    """Each letter's line says why it is there and where it came from."""
    result = accrete("dlq", "list", "-c", with_letters(tmp_path))
    assert result.exit_code == 0, result.output
    assert DeadLetterReason.BAD_PAYLOAD.value in result.output
    assert "default/0/0/" in result.output
    assert "payroll/0/0/" in result.output


def test_dlq_list_of_a_stream_without_letters(tmp_path: Path) -> None:
    """It says so."""
    result = accrete("dlq", "list", "-c", configuration(tmp_path))
    assert "no dead letters in default.dlq" in result.output


def test_dlq_show_gives_the_original_bytes(tmp_path: Path) -> None:
    """Headers in words, the payload readable or in hexadecimal, or into a file as it is."""
    path = with_letters(tmp_path)
    result = accrete("dlq", "show", 0, "-c", path)
    assert result.exit_code == 0, result.output
    assert "label: cat" in result.output
    assert b"\x89PNG broken".hex(" ") in result.output
    accrete("dlq", "show", 0, "-c", path, "--output", tmp_path / "bytes")
    assert (tmp_path / "bytes").read_bytes() == b"\x89PNG broken"
    missing = accrete("dlq", "show", 7, "-c", path)
    assert missing.exit_code == 1
    assert "offset 7" in missing.output


def test_dlq_replay_sends_the_original_once(tmp_path: Path) -> None:
    """Bytes, key and headers are those of the first record; a second replay adds nothing."""
    path = with_letters(tmp_path)
    for _ in range(2):
        result = accrete("dlq", "replay", 0, "-c", path)
        assert result.exit_code == 0, result.output
        assert "1 letters sent again" in result.output
    first, again = records(tmp_path, "default")
    assert (again.value, again.key, again.headers) == (first.value, first.key, first.headers)


def test_dlq_replay_of_all_leaves_what_is_not_the_streams(tmp_path: Path) -> None:
    """A letter's header chooses no topic of somebody else's; the status says that one is left."""
    result = accrete("dlq", "replay", "--all", "-c", with_letters(tmp_path))
    assert result.exit_code == 1
    assert "1 letters sent again" in result.output
    assert "offset 1: came from 'payroll'" in result.output
    assert len(records(tmp_path, "default")) == 2
    assert records(tmp_path, "payroll") == []


def test_dlq_replay_by_reason(tmp_path: Path) -> None:
    """Only letters of that reason are sent; a reason that does not exist is a mistake."""
    path = with_letters(tmp_path)
    result = accrete("dlq", "replay", "--all", "--reason", "bad_label", "-c", path)
    assert result.exit_code == 0
    assert "0 letters sent again" in result.output
    wrong = accrete("dlq", "replay", "--all", "--reason", "ugly", "-c", path)
    assert wrong.exit_code == 1
    assert "bad_payload" in wrong.output


def test_dlq_replay_wants_to_know_which(tmp_path: Path) -> None:
    """Neither offsets nor --all is no request; an offset that is not there is said."""
    path = with_letters(tmp_path)
    assert "--all" in accrete("dlq", "replay", "-c", path).output
    missing = accrete("dlq", "replay", 9, "-c", path)
    assert missing.exit_code == 1
    assert "offset 9: no such letter" in missing.output


def lag_cells(tmp_path: Path, path: Path) -> list[str]:
    """Return the cells of the only partition's line."""
    result = accrete("lag", "-c", path)
    assert result.exit_code == 0, result.output
    _, line = [line for line in result.output.splitlines() if "│" in line]
    return [cell.strip() for cell in line.split("│")]


def test_lag_counts_from_what_the_state_has(tmp_path: Path) -> None:
    """Without a state everything is lag; with one, what comes after its offset."""
    path = configuration(tmp_path)
    log = EmbeddedLog(tmp_path / "state" / "topics.db", SystemClock())
    log.append("default", [Message(image(n)) for n in range(5)])
    log.close()
    assert lag_cells(tmp_path, path)[:5] == ["0", "5", "none yet", "", "5"]
    place = Place("default", 0)
    state = SqlState.open(tmp_path / "state", holdout_fraction={"default": 0.5}, clock=SystemClock())
    state.store("default", [NewSample("a", "cat", "image/png", b"", place, 1, 0, 1.0)], [], {place: 2})
    state.close()
    *cells, seconds = lag_cells(tmp_path, path)
    assert cells == ["0", "5", "2", "state", "3"]
    assert 0 <= float(seconds) < 60


def test_topics_create_is_for_kafka(tmp_path: Path) -> None:
    """The embedded log's topics need no making."""
    result = accrete("topics", "create", "-c", configuration(tmp_path))
    assert result.exit_code == 1
    assert "is not from Kafka (embedded)" in result.output


def test_a_cluster_that_does_not_answer_is_said(tmp_path: Path) -> None:
    """Each command names the brokers, leaves no state behind, and its status is 1."""
    source = {
        "kind": "kafka",
        "bootstrap_servers": ["127.0.0.1:9"],
        "topic": "t",
        "connect_timeout_seconds": 0.5,
    }
    path = configuration(tmp_path, streams={"s": {"source": source}})
    for command in (["dlq", "list"], ["dlq", "replay", "--all"], ["lag"], ["topics", "create"]):
        result = accrete(*command, "-c", path)
        assert result.exit_code == 1
        assert "127.0.0.1:9" in result.output, command
    assert not (tmp_path / "state").exists()
