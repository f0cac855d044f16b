"""Who may use the control endpoints."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from pydantic import SecretStr

_LOOPBACK_NAMES = {"localhost"}


def require_operator(request: Request, token: SecretStr | None) -> None:
    """Let an operator's request pass.

    With a token, whoever shows it is one. Without, only a program on this machine: the peer must be a
    loopback address, and a browser must not be made to act for a foreign page (its `Origin`) or name
    (its `Host`, which a DNS answer may have pointed here).

    Raises:
        HTTPException: 401 without the right token, 403 from elsewhere.
    """
    if token is not None:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        expected = token.get_secret_value().encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode("latin-1"), expected):
            raise HTTPException(
                401,
                "the control endpoints need the header 'Authorization: Bearer TOKEN' with serving.token",
                {"WWW-Authenticate": "Bearer"},
            )
        return
    peer = request.client.host if request.client else ""
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    origin = request.headers.get("origin")
    local = is_loopback(peer) and is_loopback(host)
    if not local or (origin is not None and urlsplit(origin).netloc != request.headers.get("host")):
        raise HTTPException(
            403,
            "without serving.token the control endpoints answer only to programs on this machine: "
            "set a token and send it as a bearer token",
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
