"""Have a class forgotten for good, or let it be learnt again."""

from __future__ import annotations

from typing import Annotated

import typer

from daemon.cli.client import DaemonClient, console, fail
from daemon.cli.options import Config, Stream, Url

Label = Annotated[str, typer.Argument(metavar="CLASS", help="Label of the class.")]


def forget(
    label: Label,
    config: Config = None,
    url: Url = None,
    stream: Stream = None,
    yes: Annotated[bool, typer.Option("--yes", help="Confirm: what is deleted cannot be had back.")] = False,
) -> None:
    """Take a class out of the live generation and delete its samples, and every generation that holds it.

    Later samples of the class are dead letters until `accrete remember`. What the topics themselves still
    hold is theirs: see to their retention.
    """
    client = DaemonClient(config, url, stream)
    if not yes:
        fail(
            f"this deletes every sample of class {label!r} of stream {client.stream!r} and every generation "
            "that holds it, for good: repeat it with --yes"
        )
    console.print(client.post("forget", {"label": label})["reason"], highlight=False)


def remember(label: Label, config: Config = None, url: Url = None, stream: Stream = None) -> None:
    """Let a forgotten class be learnt again, from samples that are still to come."""
    answer = DaemonClient(config, url, stream).post("remember", {"label": label})
    console.print(answer["reason"], highlight=False)
