"""The HTTP service over a real socket: protocol, errors, probes, metrics, swaps, stop."""

from __future__ import annotations

import base64
import json
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from cl_engine.learners.base import Prediction
from daemon.serving.v2 import HEADER_LENGTH
from daemon.settings import LimitSettings
from tests.support.http_service import RunningService, encoded_image, http_service
from tests.support.servables import FailingServable, HeldServable, LinearServable, TextServable

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def served() -> Iterator[RunningService]:
    """Serve generations 1 and 2 of a stream, 2 live; for tests that change nothing."""
    with http_service(max_inputs_per_request=4, limits=LimitSettings(max_message_bytes=100_000)) as running:
        running.slot.publish(LinearServable(1), 1)
        running.slot.publish(LinearServable(2), 2)
        yield running


def image_request(*images: bytes, **extra: object) -> dict[str, object]:
    """Make a V2 request in JSON."""
    data = [base64.b64encode(image).decode() for image in images]
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": data}], **extra}


def expected(servable: LinearServable, *images: bytes) -> Prediction:
    """Compute what a generation answers alone."""
    return servable.predict(torch.stack([servable.decode(image, "image/png") for image in images]))


def test_infer_answers_every_row_and_names_its_generation(served: RunningService) -> None:
    """The default outputs have the protocol's types and shapes and the live generation's values."""
    images = [encoded_image(i) for i in range(3)]
    response = httpx.post(f"{served.url}/v2/models/s/infer", json=image_request(*images, id="a1"))
    assert response.status_code == 200
    body = response.json()
    truth = expected(LinearServable(2), *images)
    assert (body["id"], body["model_name"], body["model_version"]) == ("a1", "s", "2")
    assert body["parameters"] == {"generation": LinearServable(2).digest, "generation_number": 2}
    outputs = {output["name"]: output for output in body["outputs"]}
    assert {n: (o["datatype"], o["shape"]) for n, o in outputs.items()} == {
        "label": ("BYTES", [3]),
        "class_id": ("INT64", [3]),
        "score": ("FP32", [3]),
        "unknown": ("FP32", [3]),
    }
    assert outputs["class_id"]["data"] == truth.class_ids.tolist()
    assert outputs["label"]["data"] == [f"class-{i}" for i in truth.class_ids.tolist()]
    assert outputs["score"]["data"] == pytest.approx(truth.scores.amax(1).tolist(), abs=1e-6)
    assert outputs["unknown"]["data"] == pytest.approx(truth.unknown.tolist(), abs=1e-6)


def test_binary_tensors_carry_the_same_answer(served: RunningService) -> None:
    """Binary inputs and outputs, as the extension frames them, equal the JSON ones."""
    images = [encoded_image(5), encoded_image(6)]
    blob = b"".join(struct.pack("<I", len(image)) + image for image in images)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2, 1]}
    header = json.dumps(
        {
            "inputs": [tensor | {"parameters": {"binary_data_size": len(blob)}}],
            "outputs": [
                {"name": "scores", "parameters": {"binary_data": True}},
                {"name": "label", "parameters": {"binary_data": True}},
                {"name": "class_id"},
            ],
        }
    ).encode()
    response = httpx.post(
        f"{served.url}/v2/models/s/infer",
        content=header + blob,
        headers={HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"},
    )
    assert response.status_code == 200
    size = int(response.headers[HEADER_LENGTH])
    body, binary = json.loads(response.content[:size]), response.content[size:]
    scores, label, class_id = body["outputs"]
    truth = expected(LinearServable(2), *images)
    assert scores["shape"] == [2, 3]
    at = scores["parameters"]["binary_data_size"]
    np.testing.assert_allclose(np.frombuffer(binary[:at], "<f4").reshape(2, 3), truth.scores, atol=1e-6)
    assert class_id["data"] == truth.class_ids.tolist()
    labels = [f"class-{i}".encode() for i in truth.class_ids.tolist()]
    assert binary[at:] == b"".join(struct.pack("<I", len(x)) + x for x in labels)
    assert label["parameters"]["binary_data_size"] == len(binary) - at


def test_pixels_answer_like_the_lossless_image(served: RunningService) -> None:
    """Raw pixels go through the same preprocessing as an encoded image."""
    servable = LinearServable(2)
    pixels = np.random.default_rng(3).integers(0, 256, (1, 6, 9, 3), dtype=np.uint8)
    request = {
        "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 6, 9, 3], "data": pixels.tolist()}],
        "outputs": [{"name": "scores"}],
    }
    nested = httpx.post(f"{served.url}/v2/models/s/infer", json=request).json()
    request["inputs"][0]["data"] = pixels.reshape(-1).tolist()
    flat = httpx.post(f"{served.url}/v2/models/s/infer", json=request).json()
    from PIL import Image

    from cl_engine.images import square

    truth = servable.predict(square(Image.fromarray(pixels[0]), servable.SIDE)[None])
    assert nested == flat
    assert nested["outputs"][0]["data"] == pytest.approx(truth.scores[0].tolist(), abs=1e-6)


def test_metadata_and_readiness(served: RunningService) -> None:
    """Server and model describe themselves; a version is a resident number or digest."""
    get = lambda path: httpx.get(served.url + path)  # noqa: E731
    assert get("/v2").json() == {"name": "accrete", "version": "1.2.3", "extensions": ["binary_tensor_data"]}
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json() == {"ready": True}
    assert get("/v2/models/s/ready").json() == {"name": "s", "ready": True}
    model = get("/v2/models/s").json()
    assert (model["name"], model["versions"]) == ("s", ["2", "1"])
    assert [(i["name"], i["datatype"], i["shape"]) for i in model["inputs"]] == [
        ("image", "BYTES", [-1]),
        ("pixels", "UINT8", [-1, -1, -1, 3]),
    ]
    assert get(f"/v2/models/s/versions/{LinearServable(1).digest}").json()["versions"] == ["1"]
    assert get("/v2/models/s/versions/1/ready").status_code == 200
    assert get("/v2/models/s/versions/9/ready").status_code == 404


def test_a_pinned_version_answers_from_that_generation(served: RunningService) -> None:
    """Number and digest pin a resident generation, whatever is live."""
    image = encoded_image(1)
    for version in ("1", LinearServable(1).digest):
        body = httpx.post(
            f"{served.url}/v2/models/s/versions/{version}/infer", json=image_request(image)
        ).json()
        assert body["parameters"]["generation"] == LinearServable(1).digest
        score = expected(LinearServable(1), image).scores.max()
        assert body["outputs"][2]["data"] == pytest.approx([float(score)], abs=1e-6)


BAD_INPUT = {"name": "image", "datatype": "BYTES", "shape": [1]}
BAD_REQUESTS: dict[str, tuple[object, int, str]] = {
    "no JSON": ("{", 400, "body"),
    "no inputs": ({"inputs": []}, 400, "inputs"),
    "unknown input": (
        {"inputs": [BAD_INPUT | {"name": "x", "data": ["a"]}]},
        400,
        "send exactly one of image",
    ),
    "wrong datatype": ({"inputs": [BAD_INPUT | {"datatype": "FP32", "data": ["a"]}]}, 400, "send BYTES"),
    "no base64": ({"inputs": [BAD_INPUT | {"data": ["*"]}]}, 400, "not base64"),
    "no image": ({"inputs": [BAD_INPUT | {"data": ["aGFsbG8="]}]}, 400, "no image format"),
    "no data": ({"inputs": [BAD_INPUT]}, 400, "neither data nor binary_data_size"),
    "shape and data differ": ({"inputs": [BAD_INPUT | {"data": []}]}, 400, "0 elements"),
    "truncated": (image_request(encoded_image()[:100]), 400, "input 0: the PNG image is truncated"),
    "unknown output": (image_request(encoded_image(), outputs=[{"name": "x"}]), 400, "does not exist"),
    "too many inputs": (image_request(*[encoded_image()] * 5), 400, "send 1 to 4"),
    "too large": ({"inputs": [], "padding": "x" * 150_000}, 413, "larger than 100000 bytes"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_gets_an_error_object_that_says_why(served: RunningService, case: str) -> None:
    """Status and message name the fault; the request is counted once, as bad."""
    content, status, text = BAD_REQUESTS[case]
    before = served.count("infer", "bad_request")
    body = content if isinstance(content, str) else json.dumps(content)
    response = httpx.post(f"{served.url}/v2/models/s/infer", content=body)
    assert response.status_code == status
    assert text in response.json()["error"]
    assert list(response.json()) == ["error"]
    assert served.count("infer", "bad_request") == before + 1


def test_unknown_names_are_404_with_an_error_object(served: RunningService) -> None:
    """Streams, versions and paths that do not exist are told apart; none becomes a metric label."""
    for path, text in {
        "/v2/models/other/infer": "no stream 'other'",
        "/v2/models/s/versions/9/infer": "no generation '9' in memory (resident: 2, 1)",
        "/v1/streams/other/classify": "no stream 'other'",
        "/v1/streams/other/flush": "no stream 'other'",
        "/v2/nothing": "nothing at /v2/nothing",
    }.items():
        response = httpx.post(served.url + path, json=image_request(encoded_image()))
        assert response.status_code == 404, path
        assert text in response.json()["error"]
    assert 'stream="other"' not in httpx.get(f"{served.url}/metrics").text


def test_plain_upload_and_form_upload_agree(served: RunningService) -> None:
    """An image as the body, with or without its type, or as a form's file, gets one JSON answer."""
    image = encoded_image(9)
    url = f"{served.url}/v1/streams/s/classify"
    answers = [
        httpx.post(url, content=image).json(),
        httpx.post(url, content=image, headers={"Content-Type": "image/png"}).json(),
        httpx.post(url, content=image, headers={"Content-Type": "application/x-www-form-urlencoded"}).json(),
        httpx.post(url, files={"file": ("a.png", image, "image/png")}).json(),
        httpx.post(url, files={"file": ("a.png", image, "application/octet-stream")}).json(),
    ]
    assert all(answer == answers[0] for answer in answers)
    truth = expected(LinearServable(2), image)
    answer = answers[0]
    assert answer["class_id"] == int(truth.class_ids[0])
    assert answer["label"] == f"class-{answer['class_id']}"
    assert [best["score"] for best in answer["top"]] == pytest.approx(
        truth.scores[0].sort(descending=True).values.tolist(), abs=1e-6
    )
    assert answer["top"][0] == {k: answer[k] for k in ("label", "class_id", "score")}
    assert answer["generation_number"] == 2
    assert len(httpx.post(f"{url}?top=1", content=image).json()["top"]) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"content": b""}, "no payload"),
        ({"files": {"other": ("a.png", b"x", "image/png")}}, "no field 'file'"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, "form cannot be read"),
        ({"content": b"x", "headers": {"Content-Type": "image/png"}}, "not a PNG image"),
        ({"content": b"x", "headers": {"Content-Type": "text/html"}}, "'text/html' is not an image"),
        ({"content": b"x", "params": {"top": "0"}}, "query.top"),
    ],
)
def test_a_bad_upload_says_why(served: RunningService, arguments: dict[str, object], text: str) -> None:
    """Each fault of an upload has its own message."""
    response = httpx.post(f"{served.url}/v1/streams/s/classify", **arguments)
    assert response.status_code == 400
    assert text in response.json()["error"]


def test_texts_are_classified_by_a_text_stream() -> None:
    """A text stream takes text tensors and plain bodies, and says so in its metadata."""
    with http_service(text=True) as running:
        running.slot.publish(TextServable(1), 1)
        metadata = httpx.get(f"{running.url}/v2/models/s").json()
        assert [i["name"] for i in metadata["inputs"]] == ["text"]
        tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["grün", "blau"]}
        body = httpx.post(f"{running.url}/v2/models/s/infer", json={"inputs": [tensor]}).json()
        plain = httpx.post(
            f"{running.url}/v1/streams/s/classify",
            content="grün".encode(),
            headers={"Content-Type": "text/plain"},
        ).json()
        assert body["outputs"][2]["data"][0] == pytest.approx(plain["score"])
        unnamed = httpx.post(f"{running.url}/v1/streams/s/classify", content="grün".encode()).json()
        assert unnamed == plain
        image = httpx.post(f"{running.url}/v2/models/s/infer", json=image_request(encoded_image()))
        assert image.status_code == 400
        assert "this model takes texts, send exactly one of text" in image.json()["error"]


def test_before_the_first_generation_the_service_is_ready_and_the_model_is_not() -> None:
    """The service takes samples, requests get 503, and the first publication makes the model ready."""
    with http_service() as running:
        get = lambda path: httpx.get(running.url + path)  # noqa: E731
        assert get("/livez").status_code == get("/startupz").status_code == 200
        assert get("/livez").json() == {"status": "ok"}
        assert get("/readyz").status_code == get("/v2/health/ready").status_code == 200
        checks = get("/readyz?verbose").json()["checks"]
        assert checks == {"accepting": {"ok": True, "detail": "taking requests"}}
        assert get("/v2/models/s/ready").status_code == 503
        response = httpx.post(f"{running.url}/v2/models/s/infer", json=image_request(encoded_image()))
        assert response.status_code == 503
        assert "has learnt nothing yet" in response.json()["error"]
        assert running.count("infer", "not_ready") == 1
        assert "accrete_ready 1.0" in get("/metrics").text
        running.slot.publish(LinearServable(1), 1)
        assert get("/v2/models/s/ready").status_code == 200


def test_metrics_parse_and_reconcile() -> None:
    """Both formats parse, and the outcomes add up to the requests that were sent."""
    with http_service() as running:
        running.slot.publish(LinearServable(1), 1)
        url = f"{running.url}/v2/models/s/infer"
        for i in range(6):
            httpx.post(url, json=image_request(encoded_image(i), encoded_image(i)))
        running.slot.publish(FailingServable(2), 2)
        assert httpx.post(url, json=image_request(encoded_image())).json() == {
            "error": "internal error: see the daemon's log"
        }
        httpx.post(url, content=b"{")
        httpx.post(f"{running.url}/v1/streams/s/classify", content=b"")
        text = httpx.get(f"{running.url}/metrics")
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        openmetrics = httpx.get(f"{running.url}/metrics", headers=accept)
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert text.headers["content-type"].startswith("text/plain")
        for families in (parse_text(text.text), parse_openmetrics(openmetrics.text)):
            samples = {
                (s.name, s.labels.get("endpoint"), s.labels.get("outcome")): s.value
                for family in families
                for s in family.samples
                if "le" not in s.labels
            }
            counts = {k[1:]: v for k, v in samples.items() if k[0] == "accrete_inference_requests_total"}
            assert {k: v for k, v in counts.items() if v} == {
                ("infer", "ok"): 6,
                ("infer", "error"): 1,
                ("infer", "bad_request"): 1,
                ("classify", "bad_request"): 1,
            }
            assert samples["accrete_inference_request_duration_seconds_count", "infer", None] == 8
            assert samples["accrete_inference_batch_size_count", None, None] == 7
            assert samples["accrete_inference_batch_size_sum", None, None] == 13
            assert samples["accrete_inference_queue_duration_seconds_count", None, None] == 7


def test_overload_and_timeout_have_their_own_status() -> None:
    """A full queue is 503 with Retry-After, a slow answer 504; both are counted as what they are."""
    held = HeldServable(1)
    with http_service(max_queue=1, request_timeout_seconds=0.5) as running, ThreadPoolExecutor(4) as pool:
        running.slot.publish(held, 1)
        ask = lambda: httpx.post(f"{running.url}/v2/models/s/infer", json=image_request(encoded_image()))  # noqa: E731
        first = pool.submit(ask)
        assert held.entered.wait(20)
        others = [pool.submit(ask) for _ in range(3)]
        responses = [other.result(20) for other in others]
        assert first.result(20).status_code == 504
        held.go.set()
        assert sorted(r.status_code for r in responses) == [503, 503, 504]
        refused = next(r for r in responses if r.status_code == 503)
        assert refused.headers["retry-after"] == "1"
        assert "max_queue is 1" in refused.json()["error"]
        assert (running.count("infer", "timeout"), running.count("infer", "overloaded")) == (2, 2)


def test_swaps_under_load_fail_nothing_and_mix_nothing() -> None:
    """Every answer names one of the two generations and equals what that one answers alone."""
    images = [encoded_image(i) for i in range(8)]
    servables = [LinearServable(1), LinearServable(2)]
    truth = {s.digest: expected(s, *images) for s in servables}
    with http_service() as running:
        for number, servable in enumerate(servables, 1):
            running.slot.publish(servable, number)
        stop = threading.Event()

        def client(which: int) -> list[str]:
            seen, i = [], which
            with httpx.Client() as session:
                while not stop.is_set():
                    i = (i + 1) % len(images)
                    response = session.post(f"{running.url}/v1/streams/s/classify", content=images[i])
                    assert response.status_code == 200, response.text
                    answer = response.json()
                    alone = truth[answer["generation"]]
                    assert answer["class_id"] == int(alone.class_ids[i])
                    assert answer["score"] == pytest.approx(float(alone.scores[i].max()), abs=1e-5)
                    seen.append(answer["generation"])
            return seen

        with ThreadPoolExecutor(3) as pool:
            clients = [pool.submit(client, which) for which in range(3)]
            swaps = 0
            while swaps < 60:
                running.slot.promote_resident(servables[swaps % 2].digest)
                swaps += 1
                time.sleep(0.01)  # real time is what is tested: requests cross the swaps
            stop.set()
            seen = [digest for done in clients for digest in done.result(20)]
        assert set(seen) == {s.digest for s in servables}
        assert running.count("classify", "ok") == len(seen)


def test_a_stop_answers_what_has_been_taken() -> None:
    """A request in flight gets its answer, readiness goes first, and the port is closed after."""
    held = HeldServable(1)
    with http_service() as running, ThreadPoolExecutor(2) as pool:
        running.slot.publish(held, 1)
        url = f"{running.url}/v1/streams/s/classify"
        answer = pool.submit(httpx.post, url, content=encoded_image())
        assert held.entered.wait(20)
        stopping = pool.submit(running.server.stop, 10.0)
        while not running.service.draining:
            time.sleep(0.001)
        assert not running.service.ready()
        held.go.set()
        assert answer.result(20).status_code == 200
        stopping.result(20)
        assert not running.server.alive
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{running.url}/livez")
