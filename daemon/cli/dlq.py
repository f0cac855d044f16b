"""`accrete dlq`: look at a stream's dead letters and send them again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.client import console, errors, fail, listing, settings_or_exit
from daemon.cli.options import Config, Stream, local_time

app = typer.Typer(help="Look at dead letters and send them again.", no_args_is_help=True)

Partition = Annotated[int, typer.Option(min=0, help="Partition of the dead-letter topic.")]
SHOWN_BYTES = 4096


@app.command("list")
def list_letters(
    config: Config = None,
    stream: Stream = None,
    limit: Annotated[int, typer.Option(min=1, help="The latest ones of each partition.")] = 50,
) -> None:
    """List the latest dead letters with their reasons."""
    from daemon.cli.streams import chosen_stream, opened_topics
    from daemon.messages.dead_letter import dead_letter_facts, dead_letter_topic
    from daemon.sources.base import scan

    settings = settings_or_exit(config)
    name, _ = chosen_stream(settings, stream)
    table = listing("partition", "offset", "when", "reason", "from", "bytes", "message")
    with opened_topics(settings, name) as topics:
        for letter in scan(topics.reader, dead_letter_topic(topics.topic), latest=limit):
            facts = dead_letter_facts(letter)
            table.add_row(
                str(letter.partition),
                str(letter.offset),
                local_time(letter.timestamp),
                facts.reason,
                facts.place,
                str(len(letter.value or b"")),
                facts.message,
            )
    console.print(table if table.row_count else f"no dead letters in {dead_letter_topic(topics.topic)}")


@app.command()
def show(
    offset: Annotated[int, typer.Argument(min=0, help="Offset of the letter.")],
    config: Config = None,
    stream: Stream = None,
    partition: Partition = 0,
    output: Annotated[Path | None, typer.Option(help="Write the original bytes to this file.")] = None,
) -> None:
    """Show one dead letter: headers, key and the original bytes."""
    from daemon.cli.streams import chosen_stream, opened_topics
    from daemon.messages.dead_letter import dead_letter_topic

    settings = settings_or_exit(config)
    name, _ = chosen_stream(settings, stream)
    with opened_topics(settings, name) as topics:
        topic = dead_letter_topic(topics.topic)
        extent = topics.reader.extents(topic).get(partition)
        inside = extent is not None and extent.start <= offset < extent.end
        found = topics.reader.read(topic, partition, offset, 1) if inside else ()
    if not found or found[0].offset != offset:
        fail(
            f"topic {topic}: no letter at partition {partition} offset {offset}; `accrete dlq list` has them"
        )
    letter = found[0]
    value = letter.value or b""
    console.print(f"key: {_text(letter.key or b'')}", highlight=False)
    for header, content in letter.headers.items():
        console.print(f"{header}: {_text(content)}", highlight=False)
    if output is not None:
        output.write_bytes(value)
        console.print(f"{len(value)} bytes written to {output}", highlight=False)
    else:
        more = "" if len(value) <= SHOWN_BYTES else f" (the first {SHOWN_BYTES}; --output FILE for all)"
        console.print(f"\n{len(value)} bytes{more}:\n{_text(value[:SHOWN_BYTES])}", highlight=False)


@app.command()
def replay(
    offsets: Annotated[list[int] | None, typer.Argument(min=0, help="Offsets of the letters.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Send every letter of the partition.")] = False,
    reason: Annotated[str | None, typer.Option(help="Only letters of this reason, with --all.")] = None,
    config: Config = None,
    stream: Stream = None,
    partition: Partition = 0,
) -> None:
    """Send dead letters to the topic they came from, as they were.

    In the embedded log a letter is sent again just once, however often this runs. On Kafka it is sent each
    time, and the store counts the same sample once.
    """
    from daemon.cli.streams import chosen_stream, opened_topics
    from daemon.errors import DeadLetterReason
    from daemon.replay import Selection, replay_letters
    from daemon.sources import control_topic

    if everything == bool(offsets):
        fail("name the letters by their offsets, or all with --all")
    reasons = [known.value for known in DeadLetterReason]
    if reason is not None and (not everything or reason not in reasons):
        fail(f"--reason goes with --all and is one of {', '.join(reasons)} (found {reason!r})")
    settings = settings_or_exit(config)
    name, chosen = chosen_stream(settings, stream)
    with opened_topics(settings, name) as topics:
        # A letter's headers were written by whoever may write its topic: they choose no other target.
        allowed = frozenset({topics.topic, control_topic(name, chosen)})
        selection = Selection(partition, frozenset(offsets or ()), reason)
        outcome = replay_letters(topics.reader, topics.sink, topics.topic, allowed, selection)
    for offset, why in outcome.left:
        errors.print(f"offset {offset}: {why}", highlight=False)
    console.print(f"{outcome.sent} letters sent again", highlight=False)
    if outcome.left:
        raise typer.Exit(1)


def _text(content: bytes) -> str:
    """Return bytes as a person can read them."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return content.hex(" ")
    return text if all(c.isprintable() or c in "\n\t" for c in text) else content.hex(" ")
