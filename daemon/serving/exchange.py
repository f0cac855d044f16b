"""One inference request from its arrival to its answer, whatever its format."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from cl_engine.learners.base import Prediction
from daemon.errors import BadRequest, RequestTimeout, TooLarge
from daemon.serving.responses import classify_error, error_response
from daemon.serving.service import Pending, ServingService

log = structlog.get_logger(__name__)

# A client that is answered in the middle of its upload sees a broken connection, not the answer;
# so an upload that is too large is read on and thrown away, up to so many times the limit.
_DISCARD_FACTOR = 4

Context = TypeVar("Context")


async def read_body(request: Request, limit: int) -> bytes:
    """Read a request's body.

    Args:
        request: where from.
        limit: most bytes.

    Raises:
        TooLarge: it is larger.
        BadRequest: the client went away, or its Content-Length is no number.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal():
        raise BadRequest(f"Content-Length is {declared[:32]!r}: it must be a number of bytes")
    size, chunks = 0, []
    # A client that asks before it sends gets its answer without sending.
    refuse_at_once = int(declared) > limit and "expect" in request.headers
    try:
        if not refuse_at_once:
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    chunks.append(chunk)
                else:
                    chunks.clear()
                if size > _DISCARD_FACTOR * limit:
                    break
    except ClientDisconnect as error:
        raise BadRequest("the client went away before its request was complete") from error
    if size > limit or refuse_at_once:
        raise TooLarge(
            f"the request is larger than {limit} bytes (limits.max_message_bytes): "
            "send fewer or smaller inputs"
        )
    return b"".join(chunks)


async def exchange(
    service: ServingService,
    request: Request,
    stream: str,
    endpoint: str,
    prepare: Callable[[bytes], tuple[Context, Pending]],
    encode: Callable[[Context, Pending, Prediction], Response],
) -> Response:
    """Read, decode, compute and answer one request, and count it exactly once.

    Args:
        service: what answers.
        request: the request.
        stream: a stream that is served; its name becomes a metric label.
        endpoint: a value of `metrics.ENDPOINTS`.
        prepare: parses the body and queues the inputs; called on a decoding thread.
        encode: makes the response; called on the event loop.
    """
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    outcome = "error"
    try:
        try:
            async with asyncio.timeout(service.serving.request_timeout_seconds):
                body = await read_body(request, service.limits.max_message_bytes)
                context, pending = await loop.run_in_executor(service.decoders, prepare, body)
                prediction = await asyncio.wrap_future(pending.future)
        except TimeoutError as error:
            raise RequestTimeout(
                f"no answer within {service.serving.request_timeout_seconds:g} s "
                "(serving.request_timeout_seconds)"
            ) from error
        response = encode(context, pending, prediction)
        outcome = "ok"
    except Exception as error:
        failure = classify_error(error)
        outcome = failure.outcome
        if failure.status == 500:
            log.exception("request.failed", stream=stream, endpoint=endpoint)
        response = error_response(error)
    finally:
        metrics = service.metrics
        metrics.requests.labels(stream, endpoint, outcome).inc()
        metrics.request_duration.labels(stream, endpoint).observe(time.perf_counter() - start)
    return response
