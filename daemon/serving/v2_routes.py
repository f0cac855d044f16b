"""The Open Inference Protocol's REST endpoints; the model name is the stream's name."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from cl_engine.learners.base import Prediction
from daemon.serving.exchange import exchange
from daemon.serving.responses import json_response
from daemon.serving.service import Pending, ServingService
from daemon.serving.v2 import HEADER_LENGTH, InferRequest, encode_response, model_metadata, parse_request


def v2_router(service: ServingService, server_version: str) -> APIRouter:
    """Build the endpoints under /v2; a version is a generation's number or digest."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol V2"])

    @router.get("")
    def server() -> Response:
        """Name the server and its extensions."""
        return json_response(
            {"name": "accrete", "version": server_version, "extensions": ["binary_tensor_data"]}
        )

    @router.get("/health/live")
    def live() -> Response:
        """Answer 200 while the process works."""
        alive = all(check()[0] for check in service.live_checks.values())
        return json_response({"live": alive}, 200 if alive else 503)

    @router.get("/health/ready")
    def ready() -> Response:
        """Answer 200 while every stream can answer."""
        is_ready = service.ready()
        return json_response({"ready": is_ready}, 200 if is_ready else 503)

    @router.get("/models/{name}")
    @router.get("/models/{name}/versions/{version}")
    def metadata(name: str, version: str | None = None) -> Response:
        """Describe the model's inputs and outputs."""
        slot = service.slot(name)
        residents = slot.residents()
        if version is not None:
            digest = slot.resolve(version)
            residents = tuple(ref for ref in residents if ref.digest == digest)
        return json_response(model_metadata(name, residents, text=service.takes_text(name)))

    @router.get("/models/{name}/ready")
    @router.get("/models/{name}/versions/{version}/ready")
    def model_ready(name: str, version: str | None = None) -> Response:
        """Answer 200 while the stream, or one resident generation of it, can answer."""
        slot = service.slot(name)
        if version is not None:
            slot.resolve(version)
        is_ready = slot.live() is not None and not service.draining
        return json_response({"name": name, "ready": is_ready}, 200 if is_ready else 503)

    @router.post("/models/{name}/infer")
    @router.post("/models/{name}/versions/{version}/infer")
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Classify images or texts."""
        service.slot(name)  # an unknown name must not become a metric label

        def prepare(body: bytes) -> tuple[InferRequest, Pending]:
            parsed = parse_request(body, request.headers.get(HEADER_LENGTH), text=service.takes_text(name))
            return parsed, service.submit(name, parsed.payloads, version)

        def encode(parsed: InferRequest, pending: Pending, prediction: Prediction) -> Response:
            body, headers = encode_response(name, pending.generation, prediction, parsed)
            return Response(body, headers=headers)

        return await exchange(service, request, name, "infer", prepare, encode)

    return router
