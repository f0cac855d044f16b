"""Where a running daemon answers: a small file in its state directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ADDRESS_FILE = "address.json"


def write_address(directory: Path, host: str, port: int) -> None:
    """Write where this process answers; replaced atomically."""
    temporary = directory / f".{ADDRESS_FILE}"
    temporary.write_text(json.dumps({"host": host, "port": port, "pid": os.getpid()}))
    temporary.replace(directory / ADDRESS_FILE)


def read_address(directory: Path) -> Mapping[str, Any] | None:
    """Read where the daemon of a state directory answers, None if none runs there.

    A daemon that was killed leaves its file; its process id tells.
    """
    try:
        address: Mapping[str, Any] = json.loads((directory / ADDRESS_FILE).read_text())
        pid = int(address["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        os.kill(pid, 0)
    except PermissionError:
        # It runs, as another user.
        return address
    except OSError:
        return None
    return address


def remove_address(directory: Path) -> None:
    """Say that nothing answers any more."""
    (directory / ADDRESS_FILE).unlink(missing_ok=True)
