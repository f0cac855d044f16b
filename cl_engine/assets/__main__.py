"""`python -m cl_engine.assets`: list what the catalogue has, fetch it, verify what is in the cache."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from cl_engine.assets.asset import Asset
from cl_engine.assets.catalogue import CATALOGUE, entry
from cl_engine.assets.fetch import cache_directory, fetch_asset, is_complete, verify
from cl_engine.errors import AssetError

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()

Names = Annotated[list[str], typer.Argument(help="Names of assets; see `list`.")]


@app.command(name="list")
def list_assets() -> None:
    """List the catalogue, and what of it is in the cache."""
    table = Table(Column("name", no_wrap=True), "kind", "MB", "cached", "licence", "what")
    for asset in CATALOGUE:
        cached = is_complete(cache_directory() / asset.directory)
        size = f"{asset.sources[0].size / 1e6:.0f}"
        table.add_row(asset.name, asset.kind, size, "yes" if cached else "no", asset.licence, asset.what)
    console.print(table)
    console.print(f"cache: {cache_directory()}", soft_wrap=True)


@app.command(name="fetch")
def fetch_assets(names: Names) -> None:
    """Fetch and convert assets that are not in the cache yet."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    for asset in [entry(name) for name in names]:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(asset.name, total=None)

            def show(step: str, done: int, total: int, asset: Asset = asset) -> None:
                progress.update(task, description=f"{asset.name}: {step}", completed=done, total=total)  # noqa: B023

            directory = fetch_asset(asset, cache_directory(), show)
        console.print(f"{asset.name}: {directory}", soft_wrap=True)


@app.command(name="verify")
def verify_assets(names: Names) -> None:
    """Compare the digests of cached files with those recorded when they were made."""
    for asset in [entry(name) for name in names]:
        directory = cache_directory() / asset.directory
        if not is_complete(directory):
            raise AssetError(f"{asset.name} is not in the cache {cache_directory()}: fetch it first")
        verify(directory)
        console.print(f"{asset.name}: unchanged")


if __name__ == "__main__":
    try:
        app()
    except (AssetError, ValueError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
