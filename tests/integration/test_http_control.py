"""The control endpoints over a real socket: who may, and what is asked of the daemon."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from daemon.settings import LimitSettings
from daemon.sources.base import Message
from tests.support.http_service import RunningService, http_service

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def local() -> Iterator[RunningService]:
    """Serve without a token."""
    with http_service(limits=LimitSettings(max_message_bytes=1024)) as running:
        yield running


@pytest.mark.parametrize("call", ["status", "sessions", "classes", "generations", "decisions"])
def test_reading_asks_the_daemon(local: RunningService, call: str) -> None:
    """Each list is one call, and an unknown stream is 404."""
    assert httpx.get(f"{local.url}/v1/streams/s/{call}").status_code == 200
    assert local.control.calls[-1][0] == call
    response = httpx.get(f"{local.url}/v1/streams/other/{call}")
    assert response.status_code == 404
    assert response.json() == {"error": "no stream 'other' is configured"}


def test_records_come_out_as_json(local: RunningService) -> None:
    """Dataclasses of the state become objects, labels keep their letters."""
    assert httpx.get(f"{local.url}/v1/streams/s/classes").json() == {
        "classes": [{"id": 0, "label": "grün", "state": "live", "first_seen": 12.5}]
    }
    httpx.get(f"{local.url}/v1/streams/s/decisions?limit=7")
    assert local.control.calls[-1] == ("decisions", 7)
    assert httpx.get(f"{local.url}/v1/streams/s/decisions?limit=0").status_code == 400


@pytest.mark.parametrize("call", ["flush", "pause", "resume"])
def test_acting_asks_the_daemon(local: RunningService, call: str) -> None:
    """Each action is one call, and never a GET."""
    assert httpx.post(f"{local.url}/v1/streams/s/{call}").json() == {"call": call}
    assert local.control.calls[-1] == (call, None)
    response = httpx.get(f"{local.url}/v1/streams/s/{call}")
    assert response.status_code == 405
    assert "error" in response.json()


def test_rollback_takes_a_number_a_digest_or_nothing(local: RunningService) -> None:
    """Nothing means the generation before; a swap that cannot be made is a conflict."""
    url = f"{local.url}/v1/streams/s/rollback"
    for body, wanted in (
        (None, None),
        ({}, None),
        ({"generation": None}, None),
        ({"generation": 3}, "3"),
        ({"generation": "ab"}, "ab"),
    ):
        assert httpx.post(url, json=body).status_code == 200
        assert local.control.calls[-1] == ("rollback", wanted)
    assert httpx.post(url).status_code == 200
    assert httpx.post(url, json={"generation": 13}).status_code == 409
    assert httpx.post(url, json={"generatoin": 3}).status_code == 400


def test_forgetting_names_a_class(local: RunningService) -> None:
    """Accepted it is 202; an unknown class is 404, one that cannot be forgotten a conflict."""
    url = f"{local.url}/v1/streams/s"
    assert httpx.post(f"{url}/forget", json={"label": "grün"}).status_code == 202
    assert local.control.calls[-1] == ("forget", "grün")
    assert httpx.post(f"{url}/remember", json={"label": "grün"}).status_code == 200
    assert local.control.calls[-1] == ("remember", "grün")
    assert httpx.post(f"{url}/forget", json={"label": "nobody"}).status_code == 404
    refused = httpx.post(f"{url}/forget", json={"label": "last"})
    assert (refused.status_code, refused.json()) == (409, {"error": "nothing would be left"})
    assert httpx.post(f"{url}/forget").status_code == 400


def test_ingest_keeps_the_record_headers_and_no_others(local: RunningService) -> None:
    """Body and message headers reach the topic as they are; query parameters hold any letter."""
    url = f"{local.url}/v1/streams/s/records"
    headers = {
        "label": "cat",
        "content-type": "image/png",
        "ce-type": "x",
        "schema-version": "1",
        "authorization": "Bearer secret",
        "idempotency-key": "k1",
    }
    assert httpx.post(url, content=b"abc", headers=headers).status_code == 202
    record = {"label": b"cat", "content-type": b"image/png", "ce_type": b"x", "schema_version": b"1"}
    assert local.control.calls[-1] == ("ingest", Message(b"abc", None, record, "k1"))
    httpx.post(url, content=b"abc", params={"label": "grün", "id": "7"}, headers={"label": "cat"})
    message = local.control.calls[-1][1]
    assert isinstance(message, Message)
    assert message.headers == {"label": "grün".encode(), "id": b"7"}
    assert httpx.post(url, content=b"abc").json() == {"error": "the header label is missing"}
    assert httpx.post(url, content=b"a" * 1025, headers={"label": "cat"}).status_code == 413


@pytest.mark.parametrize(
    "headers",
    [{"Host": "accrete.example"}, {"Origin": "https://page.example"}, {"X-Forwarded-For": "10.0.0.9"}],
)
def test_without_a_token_only_local_programs_may(local: RunningService, headers: dict[str, str]) -> None:
    """A foreign page, a name that points here and a proxied peer are refused; probes and answers are not."""
    response = httpx.post(f"{local.url}/v1/streams/s/flush", headers=headers)
    assert response.status_code == 403
    assert "set a token" in response.json()["error"]
    assert httpx.get(f"{local.url}/livez", headers=headers).status_code == 200


def test_with_a_token_only_its_holder_may() -> None:
    """The token opens the control endpoints, from anywhere; nothing else does."""
    with http_service(token="s3crét") as running:
        url = f"{running.url}/v1/streams/s/status"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3crét".encode()}):
            response = httpx.get(url, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
        held = {"Authorization": "Bearer s3crét".encode(), "Host": "accrete.example"}
        assert httpx.get(url, headers=held).status_code == 200
        assert httpx.get(f"{running.url}/livez").status_code == 200
