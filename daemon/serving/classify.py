"""The plain upload: one image (or text) in the body or as a form's file, one JSON answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File, create_form_parser
from starlette.datastructures import Headers

from cl_engine.learners.base import Prediction
from daemon.errors import BadRequest
from daemon.serving.exchange import exchange
from daemon.serving.payloads import Payload
from daemon.serving.responses import json_response
from daemon.serving.service import Pending, ServingService
from daemon.serving.slot import GenerationRef

# What clients send when they do not know: curl's defaults for --data-binary and for -F.
_UNSPECIFIC = {"", "application/octet-stream", "application/x-www-form-urlencoded"}


def classify_router(service: ServingService) -> APIRouter:
    """Build the upload endpoint."""
    router = APIRouter(tags=["classify"])

    @router.post("/v1/streams/{name}/classify")
    async def classify(
        request: Request, name: str, top: Annotated[int, Query(ge=1, le=1000)] = 5
    ) -> Response:
        """Classify one image or text: the request body, or a form's field `file`."""
        service.slot(name)  # an unknown name must not become a metric label

        def prepare(body: bytes) -> tuple[None, Pending]:
            return None, service.submit(
                name, [read_upload(request.headers, body, partial(service.guess, name))]
            )

        def encode(_: None, pending: Pending, prediction: Prediction) -> Response:
            return json_response(describe(pending.generation, prediction, top))

        return await exchange(service, request, name, "classify", prepare, encode)

    return router


def read_upload(headers: Headers, body: bytes, guess: Callable[[bytes], str]) -> Payload:
    """Take the payload out of a request.

    Args:
        headers: of the request.
        body: the payload, or a form with it.
        guess: content type of a payload that names none.

    Raises:
        BadRequest: it is empty, a broken form, or of no known type.
    """
    content_type = headers.get("content-type", "")
    data = body
    if content_type.startswith("multipart/form-data"):
        data, content_type = _form_file(content_type, body)
    if not data:
        raise BadRequest("the request has no payload: send it as the body or as the form field 'file'")
    return Payload(data, guess(data) if content_type in _UNSPECIFIC else content_type)


def _form_file(content_type: str, body: bytes) -> tuple[bytes, str]:
    files: list[File] = []

    def keep(file: File) -> None:
        if file.field_name == b"file" and not files:
            files.append(file)
        else:
            file.close()

    try:
        parser = create_form_parser(
            {"Content-Type": content_type.encode("latin-1")},
            None,
            keep,
            # The body is in memory and within the limit already: nothing is gained by a file on disk.
            {"MAX_MEMORY_FILE_SIZE": len(body) + 1},
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise BadRequest(f"the form cannot be read: {error}") from error
    if not files:
        raise BadRequest("the form has no field 'file' with a file in it, or ends before its last boundary")
    file = files[0]
    file.file_object.seek(0)
    data = file.file_object.read()
    file.close()
    return data, file.content_type or ""


def describe(generation: GenerationRef, prediction: Prediction, top: int) -> dict[str, Any]:
    """Describe the first row of a prediction, with its `top` best classes."""
    scores, columns = prediction.scores[0].topk(min(top, prediction.scores.shape[1]))
    best = [
        {"label": generation.labels[class_id], "class_id": class_id, "score": score}
        for score, class_id in zip(
            scores.tolist(), (generation.class_ids[column] for column in columns.tolist()), strict=True
        )
    ]
    return {
        "label": generation.labels[int(prediction.class_ids[0])],
        "class_id": int(prediction.class_ids[0]),
        "score": float(prediction.scores[0].max()),
        "unknown": float(prediction.unknown[0]),
        "top": best,
        "generation": generation.digest,
        "generation_number": generation.number,
    }
