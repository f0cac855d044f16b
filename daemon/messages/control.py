"""Commands from the control topic: JSON, signed where a secret is set."""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints, TypeAdapter, ValidationError

from daemon.errors import DeadLetter, DeadLetterReason
from daemon.messages.checks import check_critical, shown
from daemon.messages.formats import SCHEMA_VERSION
from daemon.messages.models import Format
from daemon.sources.base import Message, Record

SIGNATURE = "accrete-signature"
SIGNATURE_PREFIX = "sha256="


class _Command(Format):
    schema_version: Literal[1]
    """Version of this format."""
    id: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    """Unique within the stream, a UUID for instance: a command is carried out once per id."""
    stream: str
    """The stream that is meant; another stream refuses the command."""
    sent_at: AwareDatetime | None = None
    """When it was sent. A command older than `retention.command_id_days` is refused; the id of a signed one
    without this field is remembered for ever, since nothing else keeps it from being sent again."""
    critical: list[str] = Field(default_factory=list)
    """Fields that the reader must understand; it refuses the command if it does not know one."""


class Flush(_Command):
    """Start a session now with what is there."""

    command: Literal["flush"]


class Pause(_Command):
    """Take no more records in until `resume` or a restart."""

    command: Literal["pause"]


class Resume(_Command):
    """Take records in again."""

    command: Literal["resume"]


class Promote(_Command):
    """Make a generation live that the stream has had."""

    command: Literal["promote"]
    generation: str
    """Its number or its digest."""


class Rollback(_Command):
    """Make an earlier generation live."""

    command: Literal["rollback"]
    generation: str | None = None
    """Its number or its digest; the one before the live one if absent."""


class Forget(_Command):
    """Have a class forgotten for good: its samples, and every generation that holds it."""

    command: Literal["forget"]
    label: Annotated[str, StringConstraints(min_length=1)]
    """Label of the class."""


class Remember(_Command):
    """Let a forgotten class be learnt again, from samples that are still to come."""

    command: Literal["remember"]
    label: Annotated[str, StringConstraints(min_length=1)]
    """Label of the class."""


Command = Flush | Pause | Resume | Promote | Rollback | Forget | Remember
COMMANDS: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="command")])
NAMES = ("flush", "pause", "resume", "promote", "rollback", "forget", "remember")
_UNDERSTOOD = frozenset({"schema_version", "id", "stream", "sent_at", "command", "generation", "label"})


class _Envelope(Format):
    schema_version: int
    command: str
    critical: list[str] = Field(default_factory=list)


def command_message(command: Command, secret: str | None) -> Message:
    """Build the message of a command, signed if there is a secret."""
    value = command.model_dump_json(exclude_none=True, exclude_defaults=True).encode()
    headers = {} if secret is None else {SIGNATURE: f"{SIGNATURE_PREFIX}{_signature(value, secret)}".encode()}
    return Message(value, key=command.stream.encode(), headers=headers, idempotency_key=command.id)


def parse_command(record: Record, stream: str, secret: str | None) -> Command:
    """Return the command of a message.

    A signature covers every byte of the value, the stream and the id among them; so whoever can write to
    the topic, but does not know the secret, can neither make a command nor have an old one done again.

    Args:
        record: the message.
        stream: who reads it.
        secret: of the signatures; None takes unsigned commands.

    Raises:
        DeadLetter: not signed by the secret, not a command, of another version, or for another stream.
    """
    value = record.value or b""
    if secret is not None:
        _check_signature(value, record.headers.get(SIGNATURE), secret)
    try:
        envelope = _Envelope.model_validate_json(value)
    except ValidationError as error:
        raise _bad(error) from error
    if envelope.schema_version != SCHEMA_VERSION:
        raise DeadLetter(
            DeadLetterReason.UNKNOWN_SCHEMA,
            f"schema_version is {envelope.schema_version}, this release knows {SCHEMA_VERSION}",
        )
    check_critical(envelope.critical, _UNDERSTOOD)
    if envelope.command not in NAMES:
        raise DeadLetter(
            DeadLetterReason.UNSUPPORTED_COMMAND,
            f"the command {shown(envelope.command)} is not supported: use one of {', '.join(NAMES)}",
        )
    try:
        command = COMMANDS.validate_json(value)
    except ValidationError as error:
        raise _bad(error) from error
    if command.stream != stream:
        raise DeadLetter(
            DeadLetterReason.BAD_ENVELOPE,
            f"the command is for stream {shown(command.stream)}, this topic is read by {stream!r}",
        )
    return command


def _check_signature(value: bytes, header: bytes | None, secret: str) -> None:
    expected = f"{SIGNATURE_PREFIX}{_signature(value, secret)}".encode()
    if header is None or not hmac.compare_digest(header, expected):
        found = "is missing" if header is None else "does not fit"
        raise DeadLetter(
            DeadLetterReason.BAD_SIGNATURE,
            f"the header {SIGNATURE} {found}: send {SIGNATURE_PREFIX} and the HMAC-SHA-256 of the value's "
            "bytes in hexadecimal, with the stream's control.secret as its key",
        )


def _signature(value: bytes, secret: str) -> str:
    return hmac.new(secret.encode(), value, hashlib.sha256).hexdigest()


def _bad(error: ValidationError) -> DeadLetter:
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "the value"
    return DeadLetter(DeadLetterReason.BAD_ENVELOPE, f"{field}: {first['msg']}")
