"""What `deploy/` ships is accepted by the tools that will read it, and agrees with the daemon's settings."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from prometheus_client import generate_latest

from daemon.errors import ConfigError
from daemon.metrics import Metrics
from daemon.settings import EmbeddedSource, KafkaSource, load_settings
from daemon.sources.base import Place
from daemon.sources.kafka.export import FactsExporter
from daemon.sources.kafka.facts import KafkaFacts

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: package prometheus)"
)
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (package systemd)"
)


def run(*command: str | Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end, both outputs in `stdout`."""
    return subprocess.run(
        command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False
    )


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments, comments and line breaks resolved."""
    text = (DEPLOY / "Dockerfile").read_text()
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", text))
    pairs = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [(name, rest) for name, rest in pairs]


def last(instruction: str) -> str:
    """Return the arguments of an instruction's last occurrence: the one in force in the final image."""
    return [rest for name, rest in instructions() if name == instruction][-1]


def image_environment() -> dict[str, str]:
    """Return what every ENV of the Dockerfile sets."""
    words = (word for name, rest in instructions() if name == "ENV" for word in shlex.split(rest))
    return dict(word.split("=", 1) for word in words)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ACCRETE_")]:
        monkeypatch.delenv(name)


@contextmanager
def server_answering(status: int) -> Iterator[int]:
    """Serve one status on every path of a loopback port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class TestSampleConfigurations:
    def test_embedded_sample_loads_without_further_help(self) -> None:
        """The plain sample starts on a loopback address and needs neither broker nor token."""
        settings = load_settings(DEPLOY / "accrete.yaml")
        assert isinstance(settings.streams["default"].source, EmbeddedSource)
        assert settings.serving.host == "127.0.0.1"

    def test_kafka_sample_needs_a_token(self) -> None:
        """The Kafka sample listens beyond loopback, so it is refused until a token guards the control."""
        with pytest.raises(ConfigError, match=r"serving\.token"):
            load_settings(DEPLOY / "accrete-kafka.yaml")

    def test_token_file_of_the_compose_secret_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The secret's name in compose.yaml is the setting's, and the image says where secrets lie."""
        (secret,) = compose()["secrets"]
        (tmp_path / secret).write_text("a-token\n")
        assert "ACCRETE_SECRETS_DIRECTORY" in image_environment()
        monkeypatch.setenv("ACCRETE_SECRETS_DIRECTORY", str(tmp_path))
        settings = load_settings(DEPLOY / "accrete-kafka.yaml")
        assert settings.serving.token is not None
        assert settings.serving.token.get_secret_value() == "a-token"

    def test_systemd_credential_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The credential the unit's example loads is read from the directory systemd names."""
        name = re.search(r"LoadCredential=(\w+):", (DEPLOY / "systemd/accreted.service").read_text())
        assert name is not None
        (tmp_path / name[1]).write_text("a-token")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        settings = load_settings(DEPLOY / "accrete-kafka.yaml")
        assert settings.serving.token is not None


def compose() -> dict[str, dict[str, dict]]:
    """Parse compose.yaml."""
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


class TestCompose:
    def test_everything_it_mounts_and_builds_from_is_in_the_repository(self) -> None:
        """Every bind mount and the Dockerfile exist; every named volume is declared."""
        described = compose()
        for service in described["services"].values():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("."):
                    assert (DEPLOY / source).is_file(), source
                else:
                    assert source in described["volumes"], source
        build = described["services"]["accreted"]["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()

    def test_broker_and_daemon_agree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The topic exists before the daemon starts, at the advertised address, for messages of any size."""
        monkeypatch.setenv("ACCRETE_SERVING__TOKEN", "a-token")
        settings = load_settings(DEPLOY / "accrete-kafka.yaml")
        source = settings.streams["images"].source
        assert isinstance(source, KafkaSource)
        services = compose()["services"]
        broker = services["kafka"]["environment"]
        advertised = [item.split("://")[1] for item in broker["KAFKA_ADVERTISED_LISTENERS"].split(",")]
        assert set(source.bootstrap_servers) <= set(advertised)
        assert int(broker["KAFKA_MESSAGE_MAX_BYTES"]) > settings.limits.max_message_bytes
        (created,) = re.findall(r"for topic in (.*); do", services["topics"]["command"][0])
        assert created.split() == [source.topic, f"{source.topic}.dlq"]
        assert "topics" in services["accreted"]["depends_on"]

    def test_prometheus_scrapes_the_daemon_of_the_compose_file(self) -> None:
        """The scrape target is the service's name and the image's port."""
        config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
        (job,) = config["scrape_configs"]
        assert "accreted" in compose()["services"]
        port = image_environment()["ACCRETE_SERVING__PORT"]
        assert job["static_configs"] == [{"targets": [f"accreted:{port}"]}]


class TestDockerfile:
    def test_base_is_a_build_argument_of_every_stage(self) -> None:
        """Whoever has no hub, or a base image of their own, names it; no stage goes around that."""
        first, base = instructions()[0]
        assert (first, base.split("=")[0]) == ("ARG", "BASE")
        stages = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
        assert set(stages) == {"${BASE}"}

    def test_copies_only_what_the_build_context_holds(self) -> None:
        """Every COPY source exists and is let through by .dockerignore."""
        ignore = (REPOSITORY / ".dockerignore").read_text().splitlines()
        allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
        sources = [
            source
            for name, rest in instructions()
            if name == "COPY" and "--from" not in rest
            for source in rest.split()[:-1]
        ]
        assert sources
        for source in sources:
            assert (REPOSITORY / source).exists(), source
            assert source in allowed, source

    def test_runs_the_daemon_as_a_numbered_user(self) -> None:
        """The user is a fixed number other than 0, so `runAsNonRoot` can be checked; SIGTERM stops it."""
        uid = dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG")["UID"]
        assert int(uid) > 0
        assert last("USER") == "${UID}:${UID}"
        assert last("STOPSIGNAL") == "SIGTERM"

    def test_entry_point_is_an_installed_command_with_an_existing_configuration(self) -> None:
        """The entry point is a script of the distribution; the configuration is the shipped sample."""
        scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
        (command,) = json.loads(last("ENTRYPOINT"))
        assert command in scripts
        option, path = json.loads(last("CMD"))
        assert option == "--config"
        assert ("COPY", f"deploy/accrete.yaml {path}") in instructions()

    def test_image_environment_suits_the_sample(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The sample loads under the image's environment and a token, reachable from outside."""
        for name, value in image_environment().items():
            if name.startswith("ACCRETE_"):
                monkeypatch.setenv(name, value)
        monkeypatch.setenv("ACCRETE_SERVING__TOKEN", "a-token")
        settings = load_settings(DEPLOY / "accrete.yaml")
        assert settings.serving.host == "0.0.0.0"
        assert json.dumps(str(settings.state_directory)) in last("VOLUME")

    @pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
    def test_health_check_follows_readyz(self, status: int, healthy: bool) -> None:
        """The health check's command succeeds exactly when /readyz answers 200."""
        command = json.loads(last("HEALTHCHECK").split("CMD ", 1)[1])
        assert command[0] == "python"
        with server_answering(status) as port:
            done = subprocess.run(
                [sys.executable, *command[1:]],
                env={"ACCRETE_SERVING__PORT": str(port)},
                capture_output=True,
                timeout=30,
                check=False,
            )
        assert (done.returncode == 0) is healthy, done.stderr.decode()


class TestPrometheus:
    @needs_promtool
    def test_scrape_configuration_is_accepted(self) -> None:
        """Prometheus itself finds the scrape configuration sound."""
        done = run("promtool", "check", "config", DEPLOY / "prometheus/prometheus.yml")
        assert done.returncode == 0, done.stdout.decode()

    @needs_promtool
    def test_alerts_fire_when_they_should_and_only_then(self) -> None:
        """Prometheus's own rule tests: a stall, a lag, a loss and waiting events, and the quiet cases."""
        done = run("promtool", "test", "rules", DEPLOY / "prometheus/rules.test.yml")
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()

    def test_alerts_look_at_metrics_that_there_are(self) -> None:
        """A renamed metric would silence its alert without a word."""
        rules = (DEPLOY / "prometheus/rules.yml").read_text()
        asked = {name.removesuffix("_total") for name in re.findall(r"accrete_\w+", rules)}
        assert asked <= {family.name for family in Metrics().registry.collect()}

    @needs_promtool
    def test_exposition_has_nothing_to_complain_of(self) -> None:
        """Every instrument, with all its labels set, passes promtool's parser and naming rules."""
        metrics = Metrics()
        metrics.initialise(["default", "other"], ["new_classes", "manual"])
        metrics.build.info({"version": "0.1.0", "torch": "2.15.0"})
        metrics.lag_records.labels("default", "0").set(3)
        metrics.lag_seconds.labels("default", "0").set(0.5)
        metrics.topic_lag_records.labels("default", "control", "0").set(1)
        metrics.topic_lag_seconds.labels("default", "control", "0").set(0.5)
        metrics.generation_info.labels("default", "1", "sha256-0", "sgds").set(1)
        metrics.request_duration.labels("default", "infer").observe(0.01)
        FactsExporter(metrics, "default").update(
            KafkaFacts(
                up=True,
                pause_reason="backpressure",
                last_poll=1.0,
                positions={Place("images", 0): 5},
                stalled=(),
                rebalances={"assigned": 1},
                queued_records=1,
                queued_bytes=1,
                stale_records=1,
                commit_failures=1,
                gap_records=1,
            )
        )
        text = generate_latest(metrics.registry)
        families = {family.name for family in metrics.registry.collect()}
        unseen = {name for name in families if not re.search(rf"(?m)^{name}\w*[{{ ]", text.decode())}
        assert not unseen, "these families have no sample, so promtool would not see them"
        done = run("promtool", "check", "metrics", stdin=text)
        assert (done.returncode, done.stdout) == (0, b"")


@needs_systemd
class TestSystemd:
    def test_unit_is_accepted(self, tmp_path: Path) -> None:
        """`systemd-analyze` finds nothing to say about the unit, once its program exists."""
        text = (DEPLOY / "systemd/accreted.service").read_text()
        program = "/opt/accrete/bin/accreted"
        assert f"ExecStart={program} --config" in text
        unit = tmp_path / "accreted.service"
        unit.write_text(text.replace(program, sys.executable))
        done = run("systemd-analyze", "verify", unit)
        assert (done.returncode, done.stdout.decode()) == (0, "")

    def test_state_directory_it_makes_is_the_one_the_daemon_uses(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`StateDirectory=` and the variable that the daemon reads name the same place."""
        text = (DEPLOY / "systemd/accreted.service").read_text()
        (state,) = re.findall(r"(?m)^Environment=ACCRETE_STATE_DIRECTORY=%S/(\w+)$", text)
        assert re.findall(r"(?m)^StateDirectory=(\w+)$", text) == [state]
        monkeypatch.setenv("ACCRETE_STATE_DIRECTORY", f"/var/lib/{state}")
        assert load_settings(DEPLOY / "accrete.yaml").state_directory == Path("/var/lib") / state
