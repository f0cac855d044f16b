"""Log lines: one JSON object each, the daemon's own and the libraries' alike."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

SCRIPT = """
import logging
import structlog
from daemon.logs import configure_logging
from daemon.settings import LogSettings
configure_logging(LogSettings.model_validate(%s))
log = structlog.get_logger("test")
log.debug("quiet")
structlog.contextvars.bind_contextvars(stream="s")
log.info("session.promoted", session=3, odd={1, 2})
logging.getLogger("library").info("chatter")
logging.getLogger("library").warning("careful %%s", "now")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("session.failed")
"""


def lines(settings: dict[str, Any]) -> list[str]:
    """Return what a process with these log settings writes to standard error."""
    script = SCRIPT % repr(settings)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_lines() -> None:
    """Event, level, time in UTC, context and values; a traceback is a field, not more lines."""
    events = [json.loads(line) for line in lines({"format": "json"})]
    assert [e["event"] for e in events] == ["session.promoted", "careful now", "session.failed"]
    assert [e["level"] for e in events] == ["info", "warning", "error"]
    assert events[0]["session"] == 3
    assert all(e["stream"] == "s" for e in events)
    assert all(e["timestamp"].endswith("Z") for e in events)
    assert "ZeroDivisionError" in events[2]["exception"]


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("warning", 2), ("error", 1)])
def test_level(level: str, count: int) -> None:
    """Less severe lines are left out; libraries never speak below a warning."""
    assert len(lines({"format": "json", "level": level})) == count


def test_auto_is_json_where_nobody_watches() -> None:
    """Standard error is a pipe here, as under a service manager."""
    assert json.loads(lines({"format": "auto"})[0])["event"] == "session.promoted"


def test_console_is_for_people() -> None:
    """No JSON, but the event and its values."""
    first = lines({"format": "console"})[0]
    assert "session.promoted" in first
    assert not first.startswith("{")
