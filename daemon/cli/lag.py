"""`accrete lag`: how far a stream is behind its topic, with or without a running daemon."""

from __future__ import annotations

from daemon.cli.client import console, listing, settings_or_exit
from daemon.cli.options import Config, Stream


def lag(config: Config = None, stream: Stream = None) -> None:
    """Show how far the store is behind the topic, per partition, in records and in seconds."""
    from daemon.cli.streams import chosen_stream, opened_topics
    from daemon.clock import SystemClock
    from daemon.lag import partition_lags

    settings = settings_or_exit(config)
    name, _ = chosen_stream(settings, stream)
    table = listing("partition", "end", "next", "from", "records behind", "seconds behind", title=name)
    with opened_topics(settings, name) as topics:
        for row in partition_lags(settings, name, topics.reader, SystemClock()):
            wanted = "none yet" if row.next is None else str(row.next)
            table.add_row(
                str(row.partition),
                str(row.end),
                wanted,
                row.known_from,
                str(row.records),
                f"{row.seconds:.1f}",
            )
    console.print(table)
