"""Options that several commands share."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML configuration file.")]
Url = Annotated[str | None, typer.Option(help="Address of the daemon, as http://host:port.")]
Stream = Annotated[str | None, typer.Option(help="Name of the stream; not needed if there is one.")]


def local_time(seconds: float) -> str:
    """Show seconds since the epoch in the machine's time zone."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
