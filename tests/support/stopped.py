"""Stop a process and know that it has stopped."""

from __future__ import annotations

import os
import signal


def stop_child(pid: int) -> None:
    """Stop a child of this process and wait until none of its threads runs; `SIGCONT` lets it go on.

    `kill` returns before: on two busy cores, threads of a process ran on for up to 7 ms after the signal, in
    which time a broker answers what it was stopped not to answer.
    """
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
