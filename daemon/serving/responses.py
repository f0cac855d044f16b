"""Errors to HTTP: one table from exception to status code and metric outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Response

from cl_engine.errors import InputError
from daemon.errors import (
    BadRequest,
    ForgettingRefused,
    NotReady,
    Overloaded,
    RequestTimeout,
    SourceUnavailable,
    StateError,
    SwapError,
    TooLarge,
    UnknownClass,
    UnknownGeneration,
    UnknownStream,
)

# Seconds after which a refused client may try again: a full queue empties in about that.
_RETRY_AFTER = {"Retry-After": "1"}


@dataclass(frozen=True)
class Failure:
    """How an exception is answered; `outcome` is a value of `metrics.REQUEST_OUTCOMES`."""

    status: int
    outcome: str
    headers: Mapping[str, str] = field(default_factory=dict)


_FAILURES: tuple[tuple[type[Exception], Failure], ...] = (
    (TooLarge, Failure(413, "bad_request", {"Connection": "close"})),
    (BadRequest, Failure(400, "bad_request")),
    (InputError, Failure(400, "bad_request")),
    (UnknownStream, Failure(404, "bad_request")),
    (UnknownGeneration, Failure(404, "bad_request")),
    (UnknownClass, Failure(404, "bad_request")),
    (ForgettingRefused, Failure(409, "bad_request")),
    (NotReady, Failure(503, "not_ready", _RETRY_AFTER)),
    (Overloaded, Failure(503, "overloaded", _RETRY_AFTER)),
    (RequestTimeout, Failure(504, "timeout")),
    (SwapError, Failure(409, "error")),
    (SourceUnavailable, Failure(503, "error", _RETRY_AFTER)),
    (StateError, Failure(503, "error")),
)
ANSWERED_ERRORS = tuple(kind for kind, _ in _FAILURES)
_INTERNAL = Failure(500, "error")


def classify_error(error: Exception) -> Failure:
    """Return how an exception is answered; 500 for one that nobody raises on purpose."""
    for kind, failure in _FAILURES:
        if isinstance(error, kind):
            return failure
    return _INTERNAL


def failure_text(error: Exception) -> str:
    """Return what a client is told of an exception.

    The text of an unexpected exception stays in the log: it may name files or hold data.
    """
    return str(error) if classify_error(error) is not _INTERNAL else "internal error: see the daemon's log"


def error_response(error: Exception) -> Response:
    """Answer an exception with the V2 protocol's error object."""
    failure = classify_error(error)
    return error_text(failure.status, failure_text(error), failure.headers)


def error_text(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a status code and `{"error": text}`."""
    return json_response({"error": text}, status, headers)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with JSON; faster than FastAPI's own way, which inspects every value first."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, headers, "application/json")
