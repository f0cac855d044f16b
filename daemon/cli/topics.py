"""`accrete topics`: the topics of streams from Kafka."""

from __future__ import annotations

from typing import Annotated

import typer

from daemon.cli.client import console, fail, listing, settings_or_exit
from daemon.cli.options import Config, Stream

app = typer.Typer(help="Make the topics of a stream on Kafka.", no_args_is_help=True)


@app.callback()
def topics() -> None:
    """Make the topics of a stream on Kafka."""


@app.command()
def create(
    config: Config = None,
    stream: Stream = None,
    partitions: Annotated[
        int, typer.Option(min=1, help="Of the labelled, request and prediction topics.")
    ] = 1,
    replication: Annotated[
        int, typer.Option(min=1, help="Copies of each partition; all but one must confirm a message.")
    ] = 3,
) -> None:
    """Create every topic of a stream; those that exist are left as they are."""
    from daemon.cli.streams import chosen_stream
    from daemon.errors import DaemonError
    from daemon.settings import KafkaSource
    from daemon.sources import control_topic, events_topic, request_topics

    settings = settings_or_exit(config)
    name, chosen = chosen_stream(settings, stream)
    source = chosen.source
    if not isinstance(source, KafkaSource):
        fail(
            f"stream {name!r} is not from Kafka ({source.kind}): its topics are made when they are written to"
        )
    from daemon.sources.kafka.topics import create_topics, plan_topics

    plans = plan_topics(
        source,
        events=events_topic(name, chosen),
        control=control_topic(name, chosen),
        requests=request_topics(name, chosen),
        partitions=partitions,
        max_message_bytes=settings.limits.max_message_bytes,
    )
    try:
        outcomes = create_topics(source, plans, replication=replication)
    except DaemonError as error:
        fail(str(error))
    table = listing("topic", "outcome", "partitions", "purpose")
    for plan in plans:
        table.add_row(plan.name, outcomes[plan.name].value, str(plan.partitions), plan.purpose)
    console.print(table)
