"""How long ids are remembered by which something that comes again is recognised."""

from __future__ import annotations

from pydantic import Field

from daemon.settings.section import Section


class RetentionSettings(Section):
    """How long ids are remembered.

    The id of a sample is remembered as long as the sample, so for ever, unless its class is forgotten. An
    event that is not published yet is kept until it is.
    """

    command_id_days: float = Field(default=90.0, ge=30)
    """A command is carried out once within this time, and refused when it is older. The control topic that
    `accrete topics create` makes keeps its messages for 30 days. Making it longer brings
    back nothing that is forgotten."""
    message_key_days: float = Field(default=30.0, ge=1)
    """A dead letter, event or answer written again within this time is recognised by the embedded log."""
