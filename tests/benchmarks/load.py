"""Constant load over HTTP from a process of its own, so that clients do not share the server's GIL.

This module imports neither torch nor the daemon: the process starts in a fraction of a second.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """One request and what came of it.

    Attributes:
        started: monotonic seconds; the clock is the machine's, equal in every process.
        seconds: until the answer was read.
        index: which of the bodies was sent.
        status: HTTP status, 0 if the connection failed.
        body: the answer's JSON, or the error's text.
    """

    started: float
    seconds: float
    index: int
    status: int
    body: str


class LoadProcess:
    """The owner of the client process; the two talk in lines of JSON.

    Args:
        port: of the server, on loopback.
        path: of the endpoint.
        bodies: JSON texts, sent in turn by each client.
        clients: threads, each with one connection and one request at a time.
    """

    def __init__(self, port: int, path: str, bodies: Sequence[str], clients: int) -> None:
        self._order = {"port": port, "path": path, "bodies": list(bodies), "clients": clients}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process and return once every client has had its first answer."""
        # Not multiprocessing: its child would import the benchmark, and with it torch.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._tell(self._order)
        assert self._hear() == "started"

    def stop(self) -> list[Answer]:
        """End the load and return every answer, the first ones of each client left out."""
        self._tell("stop")
        answers = [Answer(*fields) for fields in self._hear()]
        assert self._process is not None
        self._process.communicate()
        return answers

    def _tell(self, message: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def _run() -> None:
    order = json.loads(sys.stdin.readline())
    clients, bodies = order["clients"], [body.encode() for body in order["bodies"]]
    stop = threading.Event()
    warm = threading.Barrier(clients + 1)
    answers: list[list[Answer]] = [[] for _ in range(clients)]
    threads = [
        threading.Thread(
            target=_client, args=(order["port"], order["path"], bodies, which, answers[which], warm, stop)
        )
        for which in range(clients)
    ]
    for thread in threads:
        thread.start()
    warm.wait(120)
    print(json.dumps("started"), flush=True)
    sys.stdin.readline()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps([answer for part in answers for answer in part]), flush=True)


def _client(
    port: int,
    path: str,
    bodies: Sequence[bytes],
    which: int,
    answers: list[Answer],
    warm: threading.Barrier,
    stop: threading.Event,
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    index = which % len(bodies)
    _ask(connection, path, bodies, index)
    warm.wait(120)
    while not stop.is_set():
        index = (index + 1) % len(bodies)
        answers.append(_ask(connection, path, bodies, index))
    connection.close()


def _ask(connection: http.client.HTTPConnection, path: str, bodies: Sequence[bytes], index: int) -> Answer:
    started = time.monotonic()
    try:
        connection.request("POST", path, bodies[index], {"Content-Type": "application/json"})
        response = connection.getresponse()
        status, text = response.status, response.read().decode()
        json.loads(text)
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        status, text = 0, repr(error)
    return Answer(started, time.monotonic() - started, index, status, text)


if __name__ == "__main__":
    _run()
