"""Where the daemon is, and how the command line talks to it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import httpx
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from daemon.address import read_address
from daemon.errors import ConfigError
from daemon.settings import OptionsCheck, Settings, load_settings

# Without markup: labels and messages come from elsewhere and may hold what looks like it.
# Into a pipe or a file nothing is cut off or wrapped: whatever reads it wants whole lines.
PIPE_WIDTH = 1000
console = Console(markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
errors = Console(stderr=True, markup=False, width=None if sys.stderr.isatty() else PIPE_WIDTH)

TIMEOUT_SECONDS = 30.0


def settings_or_exit(config: Path | None, check_options: OptionsCheck | None = None) -> Settings:
    """Load the settings, or print every mistake, one a line, and exit with status 2."""
    try:
        return load_settings(config, check_options=check_options)
    except ConfigError as error:
        errors.print("The configuration has mistakes:", style="red", highlight=False)
        errors.print(str(error), highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


class DaemonClient:
    """Calls a running daemon.

    Args:
        config: configuration file that the daemon runs with; its state directory says where it answers.
        url: the daemon's address; wins over the configuration.
        stream: which stream; None if there is just one.
    """

    def __init__(self, config: Path | None, url: str | None, stream: str | None) -> None:
        settings = settings_or_exit(config)
        if stream is None:
            if len(settings.streams) > 1:
                names = ", ".join(sorted(settings.streams))
                fail(f"there are several streams: name one with --stream ({names})")
            stream = next(iter(settings.streams))
        self.stream = stream
        self.settings = settings
        if url is None:
            address = read_address(settings.state_directory)
            if address is None:
                fail(
                    f"no daemon runs on {settings.state_directory}: start one with `accreted --config FILE`, "
                    "or say where it is with --url"
                )
            url = f"http://{address['host']}:{address['port']}"
        headers = {}
        if settings.serving.token is not None:
            headers["authorization"] = f"Bearer {settings.serving.token.get_secret_value()}"
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS)

    def get(self, what: str, **parameters: Any) -> Any:
        """Read something of the stream; print the daemon's error and exit with status 1 if it refuses."""
        return self._call("GET", what, params=parameters)

    def post(self, what: str, body: Any = None) -> Any:
        """Change something of the stream."""
        return self._call("POST", what, json=body)

    def _call(self, method: str, what: str, **arguments: Any) -> Any:
        try:
            response = self._http.request(method, f"/v1/streams/{self.stream}/{what}", **arguments)
        except httpx.HTTPError as error:
            fail(f"the daemon at {self._http.base_url} does not answer: {error}")
        try:
            body = response.json()
        except ValueError:
            body = {"error": response.text[:200]}
        if response.is_error:
            fail(str(body.get("error", body)))
        return body


def fail(message: str) -> NoReturn:
    """Print an error and exit with status 1."""
    errors.print(message, style="red", highlight=False)
    raise typer.Exit(1)


def listing(*columns: str, title: str | None = None) -> Table:
    """Return an empty table whose cells fold instead of being cut off."""
    table = Table(title=title, box=box.MINIMAL, header_style="bold", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
