"""The control endpoints: what an operator sees and does, per stream."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.encoders import jsonable_encoder
from pydantic import BaseModel, ConfigDict

from daemon.serving.control import Control
from daemon.serving.exchange import read_body
from daemon.serving.guard import require_operator
from daemon.serving.responses import json_response
from daemon.serving.service import ServingService
from daemon.sources.base import Message

# The headers of the message formats; every other HTTP header concerns the connection, not the record.
_RECORD_HEADERS = {"label", "content-type", "id"}
_VERSION_HEADER = "schema_version"


class RollbackRequest(BaseModel):
    """Where to roll back to."""

    model_config = ConfigDict(extra="forbid")

    generation: str | int | None = None
    """Digest or number; empty: the generation that was live before."""


class ForgetRequest(BaseModel):
    """Which class."""

    model_config = ConfigDict(extra="forbid")

    label: str
    """Label of the class."""


def control_router(service: ServingService, control: Control) -> APIRouter:
    """Build the endpoints under /v1/streams/{name}."""

    def guard(request: Request) -> None:
        require_operator(request, service.serving.token)

    router = APIRouter(prefix="/v1/streams/{name}", tags=["control"], dependencies=[Depends(guard)])

    @router.get("/status")
    def status(name: str) -> Response:
        """Summarise the stream."""
        return _answer(control.status(name))

    @router.get("/sessions")
    def sessions(name: str) -> Response:
        """List the sessions by id."""
        return _answer({"sessions": control.sessions(name)})

    @router.get("/classes")
    def classes(name: str) -> Response:
        """List the class registry by id."""
        return _answer({"classes": control.classes(name)})

    @router.get("/generations")
    def generations(name: str) -> Response:
        """List the generations by number."""
        return _answer({"generations": control.generations(name)})

    @router.get("/decisions")
    def decisions(name: str, limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> Response:
        """List the latest decisions, newest first."""
        return _answer({"decisions": control.decisions(name, limit)})

    @router.post("/flush")
    def flush(name: str) -> Response:
        """Start a session with what is there."""
        return _answer(control.flush(name))

    @router.post("/pause")
    def pause(name: str) -> Response:
        """Stop taking records in; requests go on being answered."""
        return _answer(control.pause(name))

    @router.post("/resume")
    def resume(name: str) -> Response:
        """Take records in again."""
        return _answer(control.resume(name))

    @router.post("/rollback")
    def rollback(name: str, body: RollbackRequest | None = None) -> Response:
        """Make an earlier generation the live one; without a body the one before."""
        generation = None if body is None or body.generation is None else str(body.generation)
        return _answer(control.rollback(name, generation))

    @router.post("/forget")
    def forget(name: str, body: ForgetRequest) -> Response:
        """Have a class forgotten for good: its samples, and every generation that holds it."""
        return _answer(control.forget(name, body.label), 202)

    @router.post("/remember")
    def remember(name: str, body: ForgetRequest) -> Response:
        """Let a forgotten class be learnt again, from samples that are still to come."""
        return _answer(control.remember(name, body.label))

    @router.post("/records")
    async def records(
        request: Request,
        name: str,
        label: str | None = None,
        sample_id: Annotated[str | None, Query(alias="id")] = None,
    ) -> Response:
        """Append one message to the stream's topic: the body, and the message formats' headers.

        `label` and `id` may be given in the query instead, where they can hold any character. With an
        `Idempotency-Key` a repeated request appends nothing.
        """
        value = await read_body(request, service.limits.max_message_bytes)
        headers = record_headers(request.headers.raw)
        headers |= {k: v.encode() for k, v in (("label", label), ("id", sample_id)) if v is not None}
        message = Message(value, None, headers, request.headers.get("idempotency-key"))
        return _answer(await run_in_threadpool(control.ingest, name, message), 202)

    return router


def record_headers(raw: list[tuple[bytes, bytes]]) -> dict[str, bytes]:
    """Pick the record's headers out of a request's.

    HTTP has no underscores in names: `ce-type` becomes `ce_type` and `schema-version`
    `schema_version`, as the message formats have them.
    """
    headers: dict[str, bytes] = {}
    for raw_name, value in raw:
        name = raw_name.decode("latin-1").lower()
        underscored = name.replace("-", "_")
        if name in _RECORD_HEADERS:
            headers[name] = value
        elif underscored.startswith("ce_") or underscored == _VERSION_HEADER:
            headers[underscored] = value
    return headers


def _answer(content: Any, status: int = 200) -> Response:
    return json_response(jsonable_encoder(content), status)
