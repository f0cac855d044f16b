"""Named steps of the hand-over at which a daemon kills its own process, as a crash there would.

The product knows nothing of this: a test's launcher replaces public methods of the parts (the
source's client, the sink, the state, the trainer) by ones that end the process with SIGKILL before or after
the work. The first time that a step is reached counts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from kafka import KafkaConsumer

from daemon.sessions.job import DoneEvent, ProgressEvent
from daemon.sessions.trainer import TrainerProcess
from daemon.sources.kafka import KafkaSink
from daemon.state import SqlState
from tests.support import consumer_process

Method = Callable[..., Any]

# The daemon's process id, where this is the process of its consumer.
_daemon: int | None = None


def arm(step: str) -> None:
    """Have this process die at a step of `STEPS`."""
    STEPS[step]()


def arm_consumer(step: str) -> None:
    """Have this process, which a daemon started, die at a step of `CONSUMER_STEPS` and take it along."""
    global _daemon
    _daemon = os.getppid()
    CONSUMER_STEPS[step]()


def die() -> NoReturn:
    """End the daemon's process at once, and this one if it is another."""
    if _daemon is not None:
        os.kill(_daemon, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL was survived")


def _before(owner: type, name: str, when: Callable[..., bool] = lambda *_, **__: True) -> None:
    original: Method = getattr(owner, name)

    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        if when(*arguments, **named):
            die()
        return original(self, *arguments, **named)

    setattr(owner, name, method)


def _after(owner: type, name: str, when: Callable[[Any], bool] = lambda _: True) -> None:
    original: Method = getattr(owner, name)

    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        result = original(self, *arguments, **named)
        if when(result):
            die()
        return result

    setattr(owner, name, method)


def _after_parse() -> None:
    # Whichever comes first: the batch's dead letters, or its transaction.
    _before(KafkaSink, "send", _is_dead_letters)
    _before(SqlState, "store")


def _is_dead_letters(topic: str, *_: object) -> bool:
    return topic.endswith(".dlq")


def _after_dead_letters() -> None:
    original = KafkaSink.send

    def send(self: KafkaSink, topic: str, messages: Any) -> None:
        original(self, topic, messages)
        if _is_dead_letters(topic):
            die()

    KafkaSink.send = send  # type: ignore[method-assign]


def _after_commit() -> None:
    original = KafkaConsumer.commit_async

    def commit_async(self: Any, offsets: Any = None, callback: Any = None) -> Any:
        def answered(committed: Any, outcome: Any) -> None:
            if not isinstance(outcome, Exception):
                die()
            if callback is not None:
                callback(committed, outcome)

        return original(self, offsets, callback=answered)

    KafkaConsumer.commit_async = commit_async


# These are reached in the process of the consumer.
CONSUMER_STEPS: dict[str, Callable[[], None]] = {
    "before commit": lambda: _before(KafkaConsumer, "commit_async"),
    "after commit": _after_commit,
}
STEPS: dict[str, Callable[[], None]] = {
    "after parse": _after_parse,
    "after dead letters": _after_dead_letters,
    "after store": lambda: _after(SqlState, "store"),
    **{step: partial(consumer_process.use, "die", step) for step in CONSUMER_STEPS},
    "during a session": lambda: _after(
        TrainerProcess, "events", lambda heard: any(isinstance(event, ProgressEvent) for event in heard)
    ),
    "after a session": lambda: _after(
        TrainerProcess, "events", lambda heard: any(isinstance(event, DoneEvent) for event in heard)
    ),
    # The new generation is built and warm; neither the durable pointer nor the one in memory has moved.
    "during a swap, before the pointer moves": lambda: _before(SqlState, "end_session"),
    "during a swap, after the pointer moved": lambda: _after(SqlState, "end_session"),
}
