"""Logging: structlog events on standard error, as JSON or for a console."""

from __future__ import annotations

import logging
import sys

import structlog

from daemon.settings import LogSettings


def configure_logging(settings: LogSettings) -> None:
    """Set up structlog for this process; the standard library's warnings come out the same way."""
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering = [] if console else [structlog.processors.format_exc_info]
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    structlog.configure(
        processors=[*shared, *rendering, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    # Libraries are heard when something is wrong; their chatter at info is not the daemon's log.
    root.setLevel(max(level, logging.WARNING))
    # The Kafka client reports every refused connection as an error; the daemon says once that a source
    # is away.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
