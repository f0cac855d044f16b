"""Logging."""

from __future__ import annotations

from typing import Literal

from daemon.settings.section import Section


class LogSettings(Section):
    """Logging to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level shown."""
    format: Literal["auto", "json", "console"] = "auto"
    """`auto`: console on a terminal, JSON otherwise."""
