"""The HTTP service: the application, and the owner of the thread that runs it."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time

import structlog
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from daemon.errors import DaemonError
from daemon.serving.classify import classify_router
from daemon.serving.control import Control
from daemon.serving.control_routes import control_router
from daemon.serving.probes import probe_router
from daemon.serving.responses import ANSWERED_ERRORS, error_response, error_text
from daemon.serving.service import ServingService
from daemon.serving.v2_routes import v2_router

log = structlog.get_logger(__name__)

_START_SECONDS = 30.0
# Connections that the kernel holds while the event loop is busy.
_BACKLOG = 2048


def create_app(service: ServingService, control: Control, *, version: str) -> FastAPI:
    """Build the application.

    Args:
        service: answers the inference requests.
        control: answers the control endpoints.
        version: the daemon's, for clients to see.
    """
    app = FastAPI(title="Accrete", version=version, redoc_url=None)

    def on_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, ANSWERED_ERRORS):
            log.error("request.failed", path=request.url.path, exc_info=error)
        return error_response(error)

    def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = error.detail
        if error.status_code == 404:
            text = f"there is nothing at {request.url.path}: see /docs for the endpoints"
        return error_text(error.status_code, text, error.headers)

    def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        del request
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return error_text(400, f"{place}: {first['msg']}")

    for kind in ANSWERED_ERRORS:
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(DaemonError, on_error)
    app.add_exception_handler(Exception, on_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)

    app.include_router(probe_router(service))
    app.include_router(v2_router(service, version))
    app.include_router(classify_router(service))
    app.include_router(control_router(service, control))
    return app


class _Server(uvicorn.Server):
    """uvicorn, with an event for its start and a heartbeat."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self.heartbeat = time.monotonic()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def on_tick(self, counter: int) -> bool:
        self.heartbeat = time.monotonic()
        return await super().on_tick(counter)


class HttpServer:
    """The owner of the thread that answers HTTP.

    Signals are the daemon's: nothing here installs a handler.

    Args:
        app: what `create_app` built.
        service: its drain state and decoding threads are looked after here.
    """

    def __init__(self, app: FastAPI, service: ServingService) -> None:
        self._service = service
        self._server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                backlog=_BACKLOG,
            )
        )
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="serving-http", daemon=True)

    @property
    def heartbeat(self) -> float:
        """Monotonic seconds of the event loop's last turn."""
        return self._server.heartbeat

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> int:
        """Bind the address, start the thread and wait until it accepts.

        Returns:
            The port, also where the settings ask for any free one.

        Raises:
            OSError: the address cannot be bound.
            RuntimeError: the server did not start.
        """
        settings = self._service.serving
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        # Bound here and not by uvicorn, which ends the process when the port is taken.
        self._socket = socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
        port = int(self._socket.getsockname()[1])
        self._thread.start()
        if not self._server.ready.wait(_START_SECONDS):
            raise RuntimeError(f"the HTTP server did not start within {_START_SECONDS:g} s")
        log.info("http.started", host=settings.host, port=port)
        return port

    def stop(self, drain_seconds: float) -> None:
        """Take no new connection, answer what has been taken, end the thread. Idempotent.

        Args:
            drain_seconds: after which requests still unanswered are cut off.
        """
        self._service.draining = True
        self._server.config.timeout_graceful_shutdown = math.ceil(drain_seconds)
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        if self._socket is not None:
            self._socket.close()
        self._service.close()

    def _run(self) -> None:
        assert self._socket is not None
        asyncio.run(self._server.serve([self._socket]))
