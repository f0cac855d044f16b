"""Loading and checking the settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from daemon.errors import ConfigError
from daemon.settings.learner import OptionsCheck, options_check
from daemon.settings.root import Settings

# Fields whose values are never shown, not even when they are wrong.
SECRET = re.compile(r"token|password|secret")


def load_settings(
    path: Path | None = None,
    overrides: dict[str, Any] | None = None,
    check_options: OptionsCheck | None = None,
) -> Settings:
    """Load and check the settings.

    Args:
        path: YAML file; None for defaults and environment alone.
        overrides: top-level values that win over the file.
        check_options: of the methods; None leaves the learners' options to those that build them.

    Raises:
        ConfigError: with every mistake, one per line, naming the field, the value and the remedy.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error
        if not isinstance(loaded, dict | None):
            raise ConfigError(f"{path}: expected a mapping of settings, found {type(loaded).__name__}")
        values = loaded or {}
    values |= overrides or {}
    token = options_check.set(check_options)
    try:
        return Settings(**values)
    except ValidationError as error:
        # Not `from error`: pydantic's own message would show every value, secrets included.
        raise ConfigError("\n".join(_mistake(e) for e in error.errors(include_url=False))) from None
    finally:
        options_check.reset(token)


def _mistake(error: ErrorDetails) -> str:
    """Name the field, what is wrong, and the value found unless it is a group or may be a secret."""
    place = ".".join(str(part) for part in error["loc"]) or "(settings)"
    hidden = isinstance(error["input"], dict) or error["type"] == "missing" or SECRET.search(place)
    return f"{place}: {error['msg']}" + ("" if hidden else f" (found {error['input']!r})")
