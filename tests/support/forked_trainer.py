"""A real trainer process, forked from one that has everything imported.

A daemon that is killed a hundred times starts as many trainers, and each would import torch for seconds.
The daemon starts a small client with its pipes as it would start a trainer; the client hands the pipes to a
nursery, a process forked before the daemon began, and the nursery forks the trainer that works on them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import ExitStack
from functools import partial

# The client imports this file: what is slow to import is imported where it is used.
PIPES = (0, 1, 2)
REQUEST_BYTES = 65536


def use(session_seconds: float) -> None:
    """Have this process's daemon start its trainers here; before it has threads.

    Args:
        session_seconds: how long every session takes at least.
    """
    from daemon import app
    from daemon.sessions.trainer import TrainerProcess
    from tests.support.kafka_broker import die_with_parent

    name = f"accrete-trainers-{os.getpid()}"
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"\0{name}")
    server.listen()
    if os.fork() == 0:
        die_with_parent()
        if session_seconds:
            from tests.support.slow_trainer import slow_down

            slow_down(session_seconds)
        _serve(server)
    server.close()
    command = (sys.executable, "-m", __name__, name)
    app.TrainerProcess = partial(TrainerProcess, command=command)  # type: ignore[attr-defined,assignment]


def _serve(server: socket.socket) -> None:
    """Fork a trainer for each client, one after another, and tell it how that ended."""
    while True:
        client, _ = server.accept()
        with client, ExitStack() as held:
            request, pipes, *_ = socket.recv_fds(client, REQUEST_BYTES, len(PIPES))
            for pipe in pipes:
                held.callback(os.close, pipe)
            pid = os.fork()
            if pid == 0:
                server.close()
                client.close()
                _train(json.loads(request), pipes)
            # The trainer must be the only reader of its input here, or it would never see it end.
            held.close()
            _, status = os.waitpid(pid, 0)
            client.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def _train(environment: dict[str, str], pipes: list[int]) -> None:
    from daemon.sessions import worker

    for pipe, own in zip(pipes, PIPES, strict=True):
        os.dup2(pipe, own)
        os.close(pipe)
    # What Python buffers belongs to the pipes it had.
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    os.environ.update(environment)
    os.nice(int(environment["NICE"]))
    try:
        worker.main()
    finally:
        os._exit(1)


def main() -> None:
    """Be the client: pass the pipes on, and end as the trainer ended."""
    with socket.socket(socket.AF_UNIX) as nursery:
        nursery.connect(f"\0{sys.argv[1]}")
        log = {"ACCRETE_TRAINER_LOG": os.environ["ACCRETE_TRAINER_LOG"], "NICE": str(os.nice(0))}
        socket.send_fds(nursery, [json.dumps(log).encode()], PIPES)
        code = int(nursery.recv(16) or -signal.SIGKILL)
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
