"""Everything durable: offsets, samples, classes, decisions, sessions and the live pointer."""

from daemon.state.sql import SqlState

__all__ = ["SqlState"]
