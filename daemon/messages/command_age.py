"""How old a command is, and whether it is too old to be carried out.

The ids of commands are remembered for a time, and a command that is older is refused. Together they keep
a command from being carried out twice, whoever sends it again and whenever.
"""

from __future__ import annotations

from daemon.errors import DeadLetter, DeadLetterReason
from daemon.messages.control import Command
from daemon.sources.base import Record


def command_date(command: Command, record: Record, *, signed: bool) -> float | None:
    """Return what a command's age counts from, seconds since the epoch; None if nothing is to be trusted.

    The signature covers `sent_at`, but not the time that the log has: whoever writes a message chooses it.

    Args:
        command: the command.
        record: its message.
        signed: whether commands must be signed.
    """
    if command.sent_at is not None:
        return command.sent_at.timestamp()
    return None if signed or record.timestamp <= 0 else record.timestamp


def check_age(date: float | None, now: float, remembered_seconds: float) -> None:
    """Refuse a command whose id may have been forgotten.

    Args:
        date: what its age counts from; None passes, for its id is never forgotten.
        now: seconds since the epoch.
        remembered_seconds: how long ids are remembered.

    Raises:
        DeadLetter: the command is older than that.
    """
    if date is not None and now - date > remembered_seconds:
        raise DeadLetter(
            DeadLetterReason.EXPIRED_COMMAND,
            f"the command is {(now - date) / 86400:.1f} days old, ids are remembered for "
            f"{remembered_seconds / 86400:g} days (retention.command_id_days): send it anew",
        )
