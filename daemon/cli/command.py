"""`accrete command`: command a stream through its control topic, from wherever that topic can be written."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.client import console, fail, settings_or_exit
from daemon.cli.options import Config

if TYPE_CHECKING:
    from daemon.clock import Clock
    from daemon.messages.control import Command
    from daemon.sources.base import Reader

POLL_SECONDS = 0.2
EVENTS_AT_ONCE = 100


def command(
    stream: Annotated[str, typer.Argument(help="Name of the stream.")],
    name: Annotated[
        str,
        typer.Argument(
            metavar="COMMAND", help="flush, pause, resume, promote, rollback, forget or remember."
        ),
    ],
    generation: Annotated[
        str | None, typer.Option(help="Number or digest, for promote and rollback.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Label of the class, for forget and remember.")] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="File with the secret that signs the command; the configuration's if left out."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the event that tells what came of it.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0, help="How long to wait, in seconds.")] = 30.0,
    config: Config = None,
) -> None:
    """Send a command to a stream's control topic, signed, and print its id.

    The status is 1 if the daemon could not carry it out, or was not heard of in time.
    """
    from daemon.cli.streams import chosen_stream, opened_topics
    from daemon.clock import SystemClock
    from daemon.messages.control import command_message
    from daemon.sources import control_topic, events_topic

    settings = settings_or_exit(config)
    _, chosen = chosen_stream(settings, stream)
    if not chosen.control.enabled:
        fail(f"stream {stream!r} reads no commands: set streams.{stream}.control.enabled for its daemon")
    if wait and not chosen.events.enabled:
        fail(f"stream {stream!r} tells no outcome: set streams.{stream}.events.enabled, or leave out --wait")
    secret = chosen.control.secret.get_secret_value() if chosen.control.secret is not None else None
    if key_file is not None:
        secret = _secret(key_file)
    sent = _command(stream, name, {"generation": generation, "label": label})
    topic, events = control_topic(stream, chosen), events_topic(stream, chosen)
    with opened_topics(settings, stream) as topics:
        ends = {partition: extent.end for partition, extent in topics.reader.extents(events).items()}
        topics.sink.send(topic, [command_message(sent, secret)])
        console.print(f"{sent.id} sent to {topic}", highlight=False)
        outcome = _outcome(topics.reader, events, ends, sent.id, timeout, SystemClock()) if wait else None
    if outcome is not None and not outcome["done"]:
        fail(f"not done: {outcome['reason']}")
    if outcome is not None:
        console.print(f"done: {outcome['reason']}", highlight=False)
    elif wait:
        fail(
            f"no outcome within {timeout:g} s: the daemon is busy or away, and does it later; or it refused "
            f"the message, and `accrete dlq list --stream {stream}` says why"
        )


def _secret(path: Path) -> str:
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--key-file {path}: {error}")
    if not secret:
        fail(f"--key-file {path} is empty: put the stream's control.secret into it")
    return secret


def _command(stream: str, name: str, options: Mapping[str, str | None]) -> Command:
    """Build the command, or say which option is missing or does not go with it."""
    from pydantic import ValidationError

    from daemon.messages.control import COMMANDS, NAMES

    if name not in NAMES:
        fail(f"no command {name!r}: use one of {', '.join(NAMES)}")
    given = {option: value for option, value in options.items() if value is not None}
    envelope = {
        "schema_version": 1,
        "id": str(uuid.uuid4()),
        "stream": stream,
        "sent_at": datetime.now(UTC),
        "command": name,
    }
    try:
        made = COMMANDS.validate_python(envelope | given)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        fail(f"{name}: --{wrong['loc'][-1]}: {wrong['msg']}")
    foreign = given.keys() - type(made).model_fields.keys()
    if foreign:
        fail(f"{name} takes no --{min(foreign)}")
    return made


def _outcome(
    reader: Reader, topic: str, ends: Mapping[int, int], command_id: str, timeout: float, clock: Clock
) -> Mapping[str, Any] | None:
    """Return the data of the event that tells of a command, None if there is none in time.

    Args:
        reader: of the stream's log.
        topic: of its events.
        ends: where each partition ended before the command was sent.
        command_id: of the command.
        timeout: seconds.
        clock: time.
    """
    from daemon.events.kinds import EventKind

    event_type = f"accrete.{EventKind.COMMAND_ENDED.value}.v1".encode()
    offsets = dict(ends)
    deadline = clock.monotonic() + timeout
    never = threading.Event()
    while True:
        for partition, extent in reader.extents(topic).items():
            offset = offsets.get(partition, extent.start)
            while offset < extent.end and (records := reader.read(topic, partition, offset, EVENTS_AT_ONCE)):
                for record in records:
                    if record.headers.get("ce_type") == event_type:
                        data: dict[str, Any] = json.loads(record.value or b"{}")
                        if data.get("command_id") == command_id:
                            return data
                offset = records[-1].offset + 1
            offsets[partition] = offset
        if clock.monotonic() >= deadline:
            return None
        clock.wait(never, POLL_SECONDS)
