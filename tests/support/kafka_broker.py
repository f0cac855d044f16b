"""Apache Kafka itself, as one process in a temporary directory."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.kafka_libs import find_classpath
from tests.support.stopped import stop_child

LOG_SETTINGS = Path(__file__).parent / "kafka" / "log4j2.yaml"
START_SECONDS = 90.0
PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """Return a TCP port of the loopback address that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """Have the kernel end this process when the tests' own is killed, and let Ctrl-C pass it by."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class KafkaBroker:
    """A broker and controller in one Java process, with the faults that tests want.

    Args:
        directory: its data, log and settings.
        extra_listeners: listener name to security protocol, beside the plain one.
        advertised: address that clients of an extra listener are sent to, where it is not its own.
        extra_settings: more lines of server.properties, after the listeners' ports are known.
        extra_format: more arguments for formatting the storage (SCRAM users).

    Attributes:
        address: host:port of the plain listener.
        ports: port of each extra listener.
    """

    def __init__(
        self,
        directory: Path,
        *,
        extra_listeners: Mapping[str, str] | None = None,
        advertised: Mapping[str, str] | None = None,
        extra_settings: Sequence[str] = (),
        extra_format: Sequence[str] = (),
    ) -> None:
        self._directory = directory
        self._classpath = find_classpath()
        self._process: subprocess.Popen[bytes] | None = None
        self._port = free_port()
        self.ports = {name: free_port() for name in extra_listeners or {}}
        self._settings = directory / "server.properties"
        self._settings.write_text("\n".join(self._lines(extra_listeners or {}, advertised or {})) + "\n")
        with self._settings.open("a") as file:
            file.writelines(f"{line}\n" for line in extra_settings)
        command = [*self._java(), "kafka.tools.StorageTool", "format", "--standalone"]
        command += ["-t", uuid.uuid4().hex[:22], "-c", str(self._settings), *extra_format]
        formatted = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=START_SECONDS
        )
        assert formatted.returncode == 0, formatted.stdout + formatted.stderr

    @property
    def address(self) -> str:
        """Host and port of the plain listener."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the process and wait until it listens."""
        assert self._process is None, "it runs already"
        command = [*self._java(), "kafka.Kafka", str(self._settings)]
        with (self._directory / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (self._directory / "broker.log").read_text()[-4000:]
            with socket.socket() as probe:
                probe.settimeout(1.0)
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError(f"no broker after {START_SECONDS} s: {self._directory / 'broker.log'}")

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the process; nothing of it is needed any more, so not gracefully."""
        if self._process is not None:
            self.kill()

    def freeze(self) -> None:
        """Let the process answer nothing while its connections stay open."""
        assert self._process is not None, "it does not run"
        stop_child(self._process.pid)

    def thaw(self) -> None:
        """Undo `freeze`."""
        assert self._process is not None, "it does not run"
        os.kill(self._process.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        os.kill(self._process.pid, how)
        self._process.wait(timeout=30)
        self._process = None

    def _java(self) -> list[str]:
        options = ["-Xmx256m", "-XX:TieredStopAtLevel=1", f"-Dlog4j2.configurationFile={LOG_SETTINGS}"]
        return ["java", *options, "-cp", self._classpath]

    def _lines(self, extra_listeners: Mapping[str, str], advertised: Mapping[str, str]) -> list[str]:
        controller = free_port()
        bound = {"PLAINTEXT": self.address} | {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}
        listeners = [f"{name}://{address}" for name, address in bound.items()]
        shown = [f"{name}://{address}" for name, address in (bound | dict(advertised)).items()]
        protocols = ["CONTROLLER:PLAINTEXT", "PLAINTEXT:PLAINTEXT"]
        protocols += [f"{name}:{protocol}" for name, protocol in extra_listeners.items()]
        return [
            "process.roles=broker,controller",
            "node.id=1",
            f"controller.quorum.bootstrap.servers=127.0.0.1:{controller}",
            f"listeners={','.join(listeners)},CONTROLLER://127.0.0.1:{controller}",
            f"advertised.listeners={','.join(shown)}",
            "controller.listener.names=CONTROLLER",
            "inter.broker.listener.name=PLAINTEXT",
            f"listener.security.protocol.map={','.join(protocols)}",
            f"log.dirs={self._directory / 'data'}",
            "offsets.topic.replication.factor=1",
            "offsets.topic.num.partitions=1",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "transaction.state.log.num.partitions=1",
            "share.coordinator.state.topic.replication.factor=1",
            "share.coordinator.state.topic.min.isr=1",
            "group.initial.rebalance.delay.ms=0",
            # A member killed in a test shall not hold up the next one for the usual least of 6 s.
            "group.min.session.timeout.ms=1000",
            # After a kill the controller waits for the dead broker's session: 12 s with the defaults.
            "broker.session.timeout.ms=2000",
            "broker.heartbeat.interval.ms=500",
        ]
