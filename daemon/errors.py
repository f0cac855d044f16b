"""Every exception that `daemon` raises on purpose.

DaemonError
├── ConfigError           the settings are wrong; the message lists every mistake
├── StreamError
│   ├── DeadLetter           a record that can never be accepted; goes to the dead-letter topic
│   ├── OffsetGap            records between the stored offset and the log's start are gone
│   ├── SourceUnavailable    the broker, log or folder cannot be reached now
│   └── MessageRefused       the log will never take this message
├── FencedProducer        another daemon writes this stream's output now; nothing was written
├── SwapError             a generation could not be made live; the old one still answers
├── ServingError          a request could not be answered
│   ├── BadRequest           the request is malformed; the message says what to send instead
│   ├── TooLarge             the request is above a size limit
│   ├── UnknownStream        no stream of that name is served here
│   ├── UnknownGeneration    the stream has no such generation, or it is no longer resident
│   ├── UnknownClass         the stream has no class of that label
│   ├── ForgettingRefused    a class cannot be forgotten, or remembered, as things stand
│   ├── NotReady             the stream has no live generation yet
│   ├── Overloaded           the queue is full, or the service is stopping
│   └── RequestTimeout       no answer within the time allowed
└── StateError
    ├── StateLocked          another daemon owns the state directory
    ├── FencedOwner          another daemon has taken over since; nothing was written
    ├── LabelForgotten       a sample's label is not taken in any more; nothing was written
    ├── UnreadableSamples    stored samples cannot be decoded
    └── StateVersionMismatch another release wrote the state
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class DaemonError(Exception):
    """Base of every error that the daemon raises on purpose."""


class ConfigError(DaemonError):
    """The settings are wrong; the message lists every mistake."""


class StreamError(DaemonError):
    """Something is wrong with what arrives, or with where it comes from."""


class DeadLetterReason(StrEnum):
    """Why a record can never be accepted: the closed label set of `accrete_dead_letters_total`."""

    TOO_LARGE = "too_large"
    BAD_ENVELOPE = "bad_envelope"
    UNKNOWN_SCHEMA = "unknown_schema"
    BAD_LABEL = "bad_label"
    BAD_CONTENT_TYPE = "bad_content_type"
    BAD_PAYLOAD = "bad_payload"
    BAD_SIGNATURE = "bad_signature"
    UNSUPPORTED_COMMAND = "unsupported_command"
    EXPIRED_COMMAND = "expired_command"
    CLASS_FORGOTTEN = "class_forgotten"


class DeadLetter(StreamError):
    """A record that can never be accepted; it goes to the dead-letter topic with this message.

    Attributes:
        reason: the closed category, a metric label.
    """

    def __init__(self, reason: DeadLetterReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class OffsetGap(StreamError):
    """Records between the stored offset and the log's start are gone."""


class SourceUnavailable(StreamError):
    """The broker, log or folder cannot be reached now."""


class MessageRefused(StreamError):
    """The log will never take this message: it is too large, or its topic is missing or forbidden."""


class FencedProducer(DaemonError):
    """Another daemon writes this stream's output now, with transactions of the same name."""


class SwapError(DaemonError):
    """A generation could not be made live; the old one still answers."""


class ServingError(DaemonError):
    """A request could not be answered."""


class BadRequest(ServingError):
    """The request is malformed; the message says what to send instead."""


class TooLarge(ServingError):
    """The request is above a size limit."""


class UnknownStream(ServingError):
    """No stream of that name is served here."""


class UnknownGeneration(ServingError):
    """The stream has no such generation, or it is no longer resident."""


class UnknownClass(ServingError):
    """The stream has no class of that label."""


class ForgettingRefused(ServingError):
    """A class cannot be forgotten, or remembered, as things stand; the message says what to do."""


class NotReady(ServingError):
    """The stream has no live generation yet."""


class Overloaded(ServingError):
    """The queue is full, or the service is stopping; the request may be sent again."""


class RequestTimeout(ServingError):
    """No answer was computed within the time allowed."""


class StateError(DaemonError):
    """The state directory cannot be used."""


class StateLocked(StateError):
    """Another daemon owns the state directory."""


class FencedOwner(StateError):
    """Another daemon has taken the state over since; nothing was written."""


class LabelForgotten(StateError):
    """A sample's label is of a class that was forgotten; nothing was written."""


class UnreadableSamples(StateError):
    """Stored samples cannot be decoded.

    Attributes:
        reasons: what is wrong, by sample id.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        sample_id, reason = next(iter(reasons.items()))
        super().__init__(f"{len(reasons)} stored samples cannot be decoded; {sample_id!r}: {reason}")
        self.reasons = dict(reasons)


class StateVersionMismatch(StateError):
    """Another release wrote the state."""
