"""`accrete schemas`: the JSON Schemas of the messages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.client import console, fail


def schemas(
    name: Annotated[str | None, typer.Argument(help="The schema to print; all names if left out.")] = None,
    write: Annotated[
        Path | None, typer.Option(help="Generate every schema from the models into this directory.")
    ] = None,
) -> None:
    """List the JSON Schemas of the messages, print one, or write all of them."""
    from daemon.messages.json_schemas import json_schemas, schema_text, shipped_schemas

    if write is not None:
        if name is not None:
            fail(f"--write writes every schema: leave {name!r} out")
        write.mkdir(parents=True, exist_ok=True)
        for file, schema in json_schemas().items():
            (write / file).write_text(schema_text(schema), encoding="utf-8")
        console.print(f"{len(json_schemas())} schemas written to {write}", highlight=False)
        return
    shipped = shipped_schemas()
    if name is None:
        for known in shipped:
            console.print(known, highlight=False)
    elif name in shipped:
        typer.echo(shipped[name], nl=False)
    else:
        fail(f"no schema {name!r}: use one of {', '.join(shipped)}")
