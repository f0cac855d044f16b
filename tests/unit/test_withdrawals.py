"""Samples that a session cannot decode: from the store to the dead letters, counted once."""

from __future__ import annotations

from pathlib import Path

from daemon.messages.dead_letter import dead_letter_facts, replayed_message
from daemon.sessions.job import UnreadableEvent, UnreadableSample
from daemon.sources.base import Record
from daemon.state.base import StreamCounts
from tests.support.session_rig import STREAM, SessionRig


def begun(tmp_path: Path) -> SessionRig:
    """Begin a session of two classes with three samples each; its trainer cannot decode one of them."""
    rig = SessionRig(tmp_path)
    rig.begin("a", "b")
    bad = UnreadableSample(id="a-1", message="the PNG image is damaged")
    rig.trainer.heard = [UnreadableEvent(session=0, samples=(bad,))]
    return rig


def test_the_session_runs_again_without_them(tmp_path: Path) -> None:
    """The sample is a dead letter, the totals still add up, and the same session is submitted again."""
    rig = begun(tmp_path)
    rig.ticks(2)
    [(topic, letter)] = rig.letters.sent
    read = Record(topic, 0, 0, letter.key, letter.value, letter.headers)
    assert topic == f"{STREAM}.dlq"
    assert dead_letter_facts(read).reason == "bad_payload"
    assert dead_letter_facts(read).message == "the PNG image is damaged"
    assert letter.idempotency_key == f"{STREAM}/0/1/0"
    replayed = replayed_message(read)
    assert (replayed.value, replayed.headers["label"], replayed.headers["id"]) == (b"x", b"a", b"a-1")
    assert rig.state.counts(STREAM) == StreamCounts(stored=5, duplicate=0, dead_lettered=1)
    assert rig.state.session_sample_ids(STREAM, 0) == ["a-0", "a-2", "b-3", "b-4", "b-5"]
    assert [(job.session, job.attempt) for job in rig.trainer.jobs] == [(0, 1), (0, 2)]
    assert rig.sample("accrete_samples_withdrawn_total") == 1
    assert rig.sample("accrete_dead_letters_total", reason="bad_payload") == 1
    rig.finish(0)
    assert rig.state.live(STREAM) is not None
    rig.close()


def test_they_stay_stored_until_their_letters_are_durable(tmp_path: Path) -> None:
    """While the log is away the session waits, and then goes on by itself."""
    rig = begun(tmp_path)
    rig.letters.failures = 2
    rig.ticks(2)
    assert rig.state.counts(STREAM).stored == 6
    assert len(rig.trainer.jobs) == 1
    rig.ticks(2)
    assert rig.state.counts(STREAM) == StreamCounts(stored=5, duplicate=0, dead_lettered=1)
    assert len(rig.trainer.jobs) == 2
    rig.close()


def test_told_twice_they_count_once(tmp_path: Path) -> None:
    """A crash between the letter and the store's transaction makes the trainer find them again."""
    rig = begun(tmp_path)
    rig.ticks(2)
    rig.state.withdraw(STREAM, ["a-1"])
    assert rig.state.counts(STREAM) == StreamCounts(stored=5, duplicate=0, dead_lettered=1)
    rig.close()
