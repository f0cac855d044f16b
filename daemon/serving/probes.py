"""Probes and metrics; they need no token, so that any orchestrator can ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from daemon.serving.responses import json_response
from daemon.serving.service import Check, ServingService
from daemon.sources.base import Place


def probe_router(service: ServingService) -> APIRouter:
    """Build the three probes and /metrics; `?verbose` lists the named checks."""
    router = APIRouter(tags=["probes"])

    @router.get("/livez")
    def livez(request: Request) -> Response:
        """Answer 200 unless the process must be restarted."""
        return _probe(request, service.live_checks)

    @router.get("/readyz")
    def readyz(request: Request) -> Response:
        """Answer 200 while requests should be sent here."""
        return _probe(request, service.ready_checks)

    @router.get("/startupz")
    def startupz(request: Request) -> Response:
        """Answer 200 once the start is complete."""
        return _probe(request, service.startup_checks)

    @router.get("/metrics")
    def metrics(request: Request) -> Response:
        """Expose the metrics, as OpenMetrics to a client that accepts it."""
        service.ready()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(service.metrics.registry), headers={"Content-Type": content_type})

    return router


def stall_check(stalled: Callable[[], Sequence[Place]], seconds: float) -> Check:
    """Return the check that fails while a partition gives nothing though it has something to give.

    A consumer can lose a partition without any error: the process lives, polls and stays a member, and
    its lag grows. Beginning anew is the cure. A broker that is away is no reason to begin anew, and its
    partitions are not stalled.

    Args:
        stalled: lists such partitions.
        seconds: for how long they have given nothing, for people.
    """

    def check() -> tuple[bool, str]:
        named = ", ".join(f"{place.topic}/{place.partition}" for place in stalled())
        if not named:
            return True, "no partition is stalled"
        return False, f"behind, but no record for over {seconds:g} s: {named}"

    return check


def _probe(request: Request, checks: Mapping[str, Check]) -> Response:
    results = {name: check() for name, check in checks.items()}
    ok = all(result for result, _ in results.values())
    content: dict[str, object] = {"status": "ok" if ok else "failed"}
    if "verbose" in request.query_params or not ok:
        content["checks"] = {
            name: {"ok": result, "detail": detail} for name, (result, detail) in results.items()
        }
    return json_response(content, 200 if ok else 503)
