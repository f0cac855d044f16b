"""The main job with a real daemon process, a real backbone and real images."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from daemon.cli.main import app
from daemon.clock import SystemClock
from daemon.demo.images import CONTENT_TYPE, DemoImages, load_demo_images
from daemon.demo.load import LoadClient
from daemon.errors import DeadLetterReason
from daemon.messages.dead_letter import ERROR_MESSAGE, ERROR_REASON
from daemon.messages.encode import Item, raw_message
from daemon.metrics import Metrics
from daemon.sources.base import Message
from daemon.sources.log import EmbeddedLog
from daemon.triggers import POLICIES
from tests.support.ingest import png_header
from tests.support.running_daemon import STREAM, RunningDaemon, daemon_settings

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def images() -> DemoImages:
    """Draw real images of every class."""
    return load_demo_images(24, 10, seed=1)


def some(images: Mapping[str, Sequence[bytes]], first: int, count: int) -> dict[str, Sequence[bytes]]:
    """Choose some of the classes."""
    return dict(list(images.items())[first : first + count])


def accrete(daemon: RunningDaemon, *arguments: str) -> Result:
    """Run a command against the daemon."""
    return CliRunner().invoke(
        app, [*arguments, "--config", str(daemon.config)], env={"COLUMNS": "300", "TERM": "dumb"}
    )


def right_answers(daemon: RunningDaemon, images: Mapping[str, Sequence[bytes]]) -> float:
    """Return the share of test images whose label the service gives."""
    asked = [(name, payload) for name, rows in images.items() for payload in rows]
    return sum(daemon.classify(payload)["label"] == name for name, payload in asked) / len(asked)


def check_metrics(daemon: RunningDaemon, records: int, samples: int, dead: int = 0) -> None:
    """Check that every series is there and that the counters reconcile."""
    found = daemon.metrics()
    complete = Metrics()
    complete.initialise([STREAM], POLICIES)
    expected = {
        (s.name, frozenset(s.labels.items()))
        for family in complete.registry.collect()
        for s in family.samples
        if not s.name.endswith(("_created", "_info"))
    }
    missing = {(name, labels) for name, labels in expected if labels not in found.get(name, {})}
    assert not missing
    consumed = found["accrete_records_consumed_total"]
    assert sum(consumed.values()) == records
    assert sum(found["accrete_samples_total"].values()) == samples + dead
    assert daemon.sample("accrete_samples_total", outcome="stored") == samples
    assert sum(found["accrete_dead_letters_total"].values()) == dead
    assert daemon.get("status")["intake"]["samples"] == {
        "stored": samples,
        "duplicate": 0,
        "dead_lettered": dead,
    }


def test_learn_serve_restart_and_roll_back(tmp_path: Path, images: DemoImages) -> None:
    """Two sessions go live, a restart serves the same without training, a rollback goes there and back."""
    with RunningDaemon(tmp_path) as daemon:
        assert httpx.get(f"{daemon.url}/v2/models/{STREAM}/ready").status_code != httpx.codes.OK
        produced = daemon.produce(some(images.train, 0, 2))
        first = daemon.wait_live(1)["live"]["digest"]
        assert right_answers(daemon, some(images.test, 0, 2)) >= 0.8
        produced += daemon.produce(some(images.train, 2, 2))
        second = daemon.wait_live(2)["live"]["digest"]
        assert right_answers(daemon, some(images.test, 0, 4)) >= 0.5
        check_metrics(daemon, 4, produced)
        assert daemon.sample("accrete_classes", state="live") == 4
        assert daemon.sample("accrete_sessions_total", outcome="promoted") == 2

        refused = subprocess.run(
            [sys.executable, "-m", "daemon", "run", "--config", str(daemon.config)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert refused.returncode == 1
        assert "StateLocked" in refused.stderr
        assert str(daemon.process.pid) in refused.stderr
        probe = some(images.test, 0, 1).popitem()[1][0]
        answer = daemon.classify(probe)

    assert daemon.process.tail(1).count("daemon.stopped")
    sessions = len(list(daemon.process.events("session.started")))
    daemon.start()
    try:
        assert daemon.wait_live(2)["live"]["digest"] == second
        assert daemon.classify(probe) == answer
        assert right_answers(daemon, some(images.test, 0, 4)) >= 0.5
        assert len(list(daemon.process.events("session.started"))) == sessions

        assert daemon.post("rollback") == {"generation": first, "generation_number": 1}
        assert daemon.classify(probe)["generation"] == first
        result = accrete(daemon, "rollback", "--to", "2")
        assert result.exit_code == 0, result.output
        assert "generation 2 is live" in result.output
        assert daemon.classify(probe) == answer
        assert accrete(daemon, "rollback", "--to", "7").exit_code == 1
        assert "2 (A_T" in accrete(daemon, "status").output
        assert accrete(daemon, "sessions").output.count("promoted") == 2
        assert accrete(daemon, "generations").output.count(first[:16]) == 1
        for name in some(images.train, 0, 4):
            assert name in accrete(daemon, "classes").output
        assert "operator asked for generation 2" in accrete(daemon, "decisions").output
        # Nothing is left to learn: neither rollback nor flush has started a session.
        assert accrete(daemon, "flush").exit_code == 1
        assert len(daemon.get("sessions")["sessions"]) == 2
    finally:
        daemon.process.stop()


def test_a_stopped_session_goes_on_from_its_checkpoint(tmp_path: Path, images: DemoImages) -> None:
    """SIGTERM in the middle of a session: a clean end at once, and the next start goes on where it was."""
    daemon = RunningDaemon(tmp_path, daemon_settings(tmp_path / "state", epochs=6))
    with daemon:
        daemon.produce(some(images.train, 0, 2))
        reached = daemon.wait(lambda s: s["session"] is not None and s["session"]["phase"] == "compact")[
            "session"
        ]["done"]
    assert daemon.process.returncode == 0
    assert daemon.process.tail(1).count("daemon.stopped")
    assert list((tmp_path / "state" / "checkpoints").iterdir())
    with daemon:
        taken_up = daemon.wait(
            lambda s: (
                s["live"] is not None
                or (s["session"] is not None and s["session"]["phase"] in {"explore", "compact"})
            )
        )
        assert taken_up["live"] is not None or taken_up["session"]["done"] >= reached - 0.1
        daemon.wait_live(1)
        [session] = daemon.get("sessions")["sessions"]
        assert (session["outcome"], session["attempt"]) == ("promoted", 2)
        assert not list((tmp_path / "state" / "checkpoints").iterdir())


def test_a_killed_worker_costs_no_request(tmp_path: Path, images: DemoImages) -> None:
    """SIGKILL of the trainer process in mid-session: every request is answered, the session is repeated."""
    daemon = RunningDaemon(tmp_path, daemon_settings(tmp_path / "state", epochs=6))
    with daemon:
        daemon.produce(some(images.train, 0, 2))
        daemon.wait_live(1)
        client = LoadClient(daemon.url, STREAM, some(images.test, 0, 2), 20.0, seed=1)
        client.start()
        try:
            daemon.produce(some(images.train, 2, 1))
            daemon.wait(lambda s: s["session"] is not None and s["session"]["phase"] == "explore")
            daemon.worker().kill()
            daemon.wait_live(2)
        finally:
            report = client.stop()
        assert report.failed == []
        assert report.requests > 10
        assert report.generations <= {1, 2}
        last = daemon.get("sessions")["sessions"][-1]
        assert (last["outcome"], last["attempt"]) == ("promoted", 2)
        assert [e["how"] for e in daemon.process.events("trainer.crashed")] == ["signal 9"]
        assert daemon.sample("accrete_session_restarts_total") == 1


def bad_messages(good: bytes) -> dict[str, tuple[Message, DeadLetterReason, str]]:
    """Return what can never be a sample: the message, the reason, and words of its explanation."""

    def raw(label: str, payload: bytes = good, content_type: str = CONTENT_TYPE) -> Message:
        return raw_message(label, content_type, Item(payload))

    jpeg = struct.pack(">HHH", 0xFFD8, 0xFFE0, 16) + b"JFIF\0" + bytes(20)
    batch = {"content-type": b"application/vnd.accrete.class-batch+json"}
    future = raw("cat")
    return {
        "truncated JPEG": (raw("cat", jpeg, "image/jpeg"), DeadLetterReason.BAD_PAYLOAD, "image"),
        "truncated PNG": (raw("cat", good[: len(good) // 2]), DeadLetterReason.BAD_PAYLOAD, "image"),
        "bomb": (raw("cat", png_header(50_000, 50_000)), DeadLetterReason.BAD_PAYLOAD, "50000"),
        "empty label": (raw(""), DeadLetterReason.BAD_LABEL, "empty"),
        "long label": (raw("x" * 300), DeadLetterReason.BAD_LABEL, "300 characters"),
        "control characters": (raw("ca\x07t"), DeadLetterReason.BAD_LABEL, "control character"),
        "wrong content type": (raw("cat", good, "image/jpeg"), DeadLetterReason.BAD_PAYLOAD, "not a JPEG"),
        "unsupported type": (
            raw("cat", good, "application/pdf"),
            DeadLetterReason.BAD_CONTENT_TYPE,
            "application/pdf",
        ),
        "invalid JSON": (Message(b"{", headers=batch), DeadLetterReason.BAD_ENVELOPE, "JSON"),
        "unknown version": (
            Message(future.value, headers={**future.headers, "schema-version": b"99"}),
            DeadLetterReason.UNKNOWN_SCHEMA,
            "99",
        ),
        "too large": (raw("cat", bytes(2**20 + 1)), DeadLetterReason.TOO_LARGE, "max_message_bytes"),
    }


def test_bad_input_through_the_running_daemon(tmp_path: Path, images: DemoImages) -> None:
    """Each lands in the dead-letter topic with its reason, the daemon goes on, the counters reconcile."""
    good = images.train["cat"][:5]
    settings = daemon_settings(tmp_path / "state")
    settings["limits"] = {"max_message_bytes": 2**20}
    bad = bad_messages(good[0])
    with RunningDaemon(tmp_path, settings) as daemon:
        for number, (message, _, _) in enumerate(bad.values()):
            daemon.append([message])
            if number < len(good):
                daemon.append([raw_message("cat", CONTENT_TYPE, Item(good[number]))])
        daemon.wait(lambda s: s["intake"]["samples"]["stored"] == len(good))
        daemon.wait(lambda s: s["intake"]["samples"]["dead_lettered"] == len(bad))
        check_metrics(daemon, len(good) + len(bad), len(good), len(bad))
        for reason in DeadLetterReason:
            count = sum(r is reason for _, r, _ in bad.values())
            assert daemon.sample("accrete_dead_letters_total", reason=reason.value) == count
        assert httpx.get(f"{daemon.url}/livez").status_code == httpx.codes.OK
    log = EmbeddedLog(tmp_path / "state" / "topics.db", SystemClock())
    letters = log.read(f"{STREAM}.dlq", 0, 0, 100)
    log.close()
    assert len(letters) == len(bad)
    for (name, (message, reason, words)), letter in zip(bad.items(), letters, strict=True):
        assert letter.value == message.value, name
        assert letter.headers[ERROR_REASON].decode() == reason.value, name
        assert words in letter.headers[ERROR_MESSAGE].decode(), name


def test_a_folder_of_pictures_becomes_classes(tmp_path: Path, images: DemoImages) -> None:
    """Files put into a watched folder are learnt and answered; a flush refreshes a known class."""
    pictures = tmp_path / "pictures"

    def put(name: str, first: int, last: int) -> None:
        (pictures / name).mkdir(parents=True, exist_ok=True)
        for index, payload in enumerate(images.train[name][first:last]):
            (pictures / name / f"{first + index}.png").write_bytes(payload)

    source = {"kind": "folder", "path": str(pictures), "scan_seconds": 0.3, "settle_seconds": 0.0}
    settings = daemon_settings(tmp_path / "state", source=source)
    put("airplane", 0, 20)
    put("frog", 0, 20)
    with RunningDaemon(tmp_path, settings) as daemon:
        daemon.wait_live(1)
        assert right_answers(daemon, {n: images.test[n] for n in ("airplane", "frog")}) >= 0.8
        put("frog", 20, 24)
        status = daemon.wait(lambda s: s["intake"]["samples"]["stored"] == 44)
        assert [(b["label"]) for b in status["buffers"]] == ["frog"]
        answer = daemon.post("flush")
        assert answer["started"], answer
        daemon.wait_live(2)
        [_, refreshed] = daemon.get("sessions")["sessions"]
        assert (refreshed["outcome"], refreshed["new_classes"]) == ("promoted", [])
        assert right_answers(daemon, {n: images.test[n] for n in ("airplane", "frog")}) >= 0.8
        check_metrics(daemon, 44, 44)


def test_a_port_in_use_ends_the_daemon_with_a_reason(tmp_path: Path) -> None:
    """It does not hang half started; the message names the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = daemon_settings(tmp_path / "state")
        settings["serving"] = {"port": taken.getsockname()[1]}
        daemon = RunningDaemon(tmp_path, settings)
        done = subprocess.run(
            [sys.executable, "-m", "daemon", "run", "--config", str(daemon.config)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1
    assert "in use" in done.stderr
