"""The process of a Kafka source: runs `KafkaSource` and answers the daemon's calls one after another.

It reads requests from the socket that is its standard input and answers there; what the consumer knows about
itself goes out about every second over the socket that was its standard output. It ends when the daemon does,
and then leaves the group in good order: what was stored last is committed, and partitions move at once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

import structlog

from daemon.clock import SystemClock
from daemon.errors import DaemonError
from daemon.interpreter import SWITCH_SECONDS, keep_what_is_there
from daemon.logs import configure_logging
from daemon.settings import KafkaSource as KafkaSettings
from daemon.settings import LogSettings
from daemon.sources.base import Record
from daemon.sources.kafka.consumer import KafkaSource
from daemon.sources.kafka.facts import KafkaFacts
from daemon.sources.kafka.frames import (
    Channel,
    pack_error,
    pack_records,
    pack_status,
    unpack_offsets,
)

log = structlog.get_logger(__name__)


class Server:
    """Carries out the daemon's calls on a source.

    Args:
        source: what is called.
        requests: where calls come from and answers go to.
    """

    def __init__(self, source: KafkaSource, requests: Channel) -> None:
        self._source = source
        self._requests = requests

    def run(self) -> None:
        """Serve until told to close.

        Raises:
            EOFError, OSError: the daemon is gone.
        """
        while True:
            (name, *arguments), _ = self._requests.receive()
            if name == "close":
                self._source.close()
                return
            if name in _ORDERS:
                getattr(self, name)(*arguments)
            else:
                self._answer(name, arguments)

    def _answer(self, name: str, arguments: list[Any]) -> None:
        blobs: Sequence[bytes] = ()
        try:
            answer = getattr(self, name)(*arguments)
            if name == "poll":
                answer, blobs = pack_records(answer)
        except DaemonError as error:
            self._requests.send(("error", *pack_error(error)))
        else:
            self._requests.send(("done", answer), blobs)

    # -- calls that are answered
    def start(self, stored: list[tuple[str, int, int]]) -> None:
        """Start the source."""
        self._source.start(unpack_offsets(stored))

    def poll(self, timeout: float, max_records: int) -> Sequence[Record]:
        """Return the next records."""
        return self._source.poll(timeout, max_records)

    def status(self) -> object:
        """Return what the consumer knows about itself now."""
        return pack_status(self._source.facts(), self._source.lag())

    # -- orders, of which nothing is said
    def commit(self, next_offsets: list[tuple[str, int, int]]) -> None:
        """Note what is stored."""
        self._source.commit(unpack_offsets(next_offsets))

    def pause(self) -> None:
        """Hand over nothing."""
        self._source.pause()

    def resume(self) -> None:
        """Hand over again."""
        self._source.resume()


_ORDERS = frozenset({"commit", "pause", "resume"})


def main() -> None:
    """Serve the daemon that started this process."""
    # The daemon stops its parts in order, and a signal may be meant for all its processes.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    requests = Channel(socket.socket(fileno=os.dup(0)))
    outlet = socket.socket(fileno=os.dup(1))
    # What anything prints is for people.
    os.dup2(2, 1)
    notices = Channel(outlet)
    settings, _ = requests.receive()
    given = json.loads(settings)
    configure_logging(LogSettings.model_validate(given["log"]))

    def tell(facts: KafkaFacts) -> None:
        notices.send(pack_status(facts, source.lag()))

    source = KafkaSource(KafkaSettings.model_validate(given["source"]), SystemClock(), on_facts=tell)
    threading.Thread(target=_end_with_daemon, args=(outlet, source), name="daemon-watch", daemon=True).start()
    sys.setswitchinterval(SWITCH_SECONDS)
    keep_what_is_there()
    try:
        Server(source, requests).run()
    except (EOFError, OSError):
        # The watch sees it too, and does what is left to do.
        threading.Event().wait()


def _end_with_daemon(outlet: socket.socket, source: KafkaSource) -> None:
    """Wait until the daemon's end of a socket that it never writes to is closed, and end this process."""
    try:
        outlet.recv(1)
    except OSError as error:
        log.info("kafka.daemon_gone", error=str(error))
    source.close()
    os._exit(0)


if __name__ == "__main__":
    main()
    sys.exit(0)
