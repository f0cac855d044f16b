"""Where secret files lie."""

from __future__ import annotations

import os
from pathlib import Path


def secrets_directory() -> Path | None:
    """Return where secret files lie (`accrete_serving__token` and the like), if anywhere.

    `ACCRETE_SECRETS_DIRECTORY` names the directory; without it systemd's `LoadCredential=` does.
    """
    named = os.environ.get("ACCRETE_SECRETS_DIRECTORY") or os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(named) if named else None
