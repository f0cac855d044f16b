"""Parsing and encoding of the Open Inference Protocol, without a socket."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cl_engine.learners.base import Prediction
from daemon.errors import BadRequest
from daemon.serving.slot import GenerationRef
from daemon.serving.v2 import HEADER_LENGTH, OUTPUTS, InferRequest, encode_response, parse_request

GENERATION = GenerationRef(7, "d1", (0, 3), {0: "grün", 3: "b"}, 0)
TEXT_INPUT = {"name": "text", "datatype": "BYTES", "shape": [1]}


def request(tensor: dict[str, object], **extra: object) -> bytes:
    """Encode a request with one input."""
    return json.dumps({"inputs": [tensor], **extra}).encode()


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_bytes_come_through_both_framings(values: list[bytes]) -> None:
    """Base64 in JSON and length-prefixed binary give the same payloads."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(values)]}
    kind = {"content_type": "image/jpeg"}
    in_json = request(tensor | {"data": [base64.b64encode(v).decode() for v in values]}, parameters=kind)
    blob = b"".join(struct.pack("<I", len(v)) + v for v in values)
    header = request(tensor | {"parameters": {"binary_data_size": len(blob), **kind}})
    expected = [(value, "image/jpeg") for value in values]
    assert parse_request(in_json, None).payloads == expected
    assert parse_request(header + blob, str(len(header))).payloads == expected


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_pixels_are_not_changed(n: int, height: int, width: int, seed: int) -> None:
    """Raw pixels, in JSON or binary, reach the decoder bit by bit."""
    pixels = np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape)}
    header = request(tensor | {"parameters": {"binary_data_size": pixels.size}})
    binary = parse_request(header + pixels.tobytes(), str(len(header))).payloads
    assert binary == parse_request(request(tensor | {"data": pixels.tolist()}), None).payloads
    decoded = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data, _ in binary]
    np.testing.assert_array_equal(np.stack(decoded), pixels)


def test_images_are_recognised_and_texts_need_nothing() -> None:
    """Without a content type an image is told by its first bytes; a named type wins."""
    for start, content_type in {
        b"\xff\xd8\xff\xe0": "image/jpeg",
        b"\x89PNG\r\n\x1a\n": "image/png",
        b"RIFF\0\0\0\0WEBP": "image/webp",
        b"GIF89a": "image/gif",
    }.items():
        tensor = TEXT_INPUT | {"name": "image", "data": [base64.b64encode(start).decode()]}
        assert parse_request(request(tensor), None).payloads == [(start, content_type)]
        named = parse_request(request(tensor, parameters={"content_type": "image/tiff"}), None)
        assert named.payloads == [(start, "image/tiff")]
    text = parse_request(request(TEXT_INPUT | {"data": ["grün"]}), None, text=True)
    assert text.payloads == [("grün".encode(), "text/plain")]


@given(st.lists(st.text(max_size=20), max_size=5))
def test_texts_come_through_both_framings(values: list[str]) -> None:
    """Strings in JSON and length-prefixed UTF-8 give the same payloads."""
    encoded = [value.encode() for value in values]
    tensor = TEXT_INPUT | {"shape": [len(values)]}
    blob = b"".join(struct.pack("<I", len(v)) + v for v in encoded)
    header = request(tensor | {"parameters": {"binary_data_size": len(blob)}})
    expected = [(value, "text/plain") for value in encoded]
    assert parse_request(request(tensor | {"data": values}), None, text=True).payloads == expected
    assert parse_request(header + blob, str(len(header)), text=True).payloads == expected


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("text", False, "'text': this model takes images, send exactly one of image, pixels"),
        ("image", True, "'image': this model takes texts, send exactly one of text"),
        ("pixels", True, "'pixels': this model takes texts, send exactly one of text"),
    ],
)
def test_a_model_of_texts_takes_no_image_and_the_reverse(name: str, text: bool, said: str) -> None:
    """The name of the input is enough to tell."""
    with pytest.raises(BadRequest, match=said):
        parse_request(request(TEXT_INPUT | {"name": name, "data": ["a"]}), None, text=text)


@pytest.mark.parametrize(
    ("tensor", "extra", "text"),
    [
        ({"data": ["a"], "shape": [2]}, {}, "shape [2] and 1 elements"),
        ({"data": ["a"], "shape": [-1]}, {}, "no side may be negative"),
        ({"data": ["a"], "shape": [1, 2]}, {}, "send [n] or [n, 1]"),
        ({"data": [1]}, {}, "not a string"),
        ({"data": ["a"]}, {"parameters": {"content_type": 1}}, "content_type is 1"),
        ({"data": ["a"]}, {"parameters": {"binary_data_output": 1}}, "binary_data_output is 1"),
        ({"data": ["a"], "parameters": {"binary_data_size": 0}}, {}, "data must be left out"),
        ({"parameters": {"binary_data_size": 9}}, {}, "the binary part has 0 bytes"),
        ({"data": ["a"]}, {"outputs": [{"name": "nothing"}]}, "ask for label, class_id"),
        ({"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 256]}, {}, "0 to 255"),
        ({"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 0.5]}, {}, "0 to 255"),
        ({"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [[1], 2]}, {}, "unevenly"),
        ({"name": "pixels", "datatype": "UINT8", "shape": [3], "data": [1, 2, 3]}, {}, "height, width, 3"),
    ],
)
def test_each_fault_is_named(tensor: dict[str, object], extra: dict[str, object], text: str) -> None:
    """The message holds the value that was found, or what to send instead."""
    with pytest.raises(BadRequest) as caught:
        parse_request(request(TEXT_INPUT | tensor, **extra), None, text=tensor.get("name") != "pixels")
    assert text in str(caught.value)


@pytest.mark.parametrize("length", ["-1", "x", "1000000", ""])
def test_a_wrong_header_length_is_refused(length: str) -> None:
    """The length of the JSON part must lie within the body."""
    with pytest.raises(BadRequest, match=HEADER_LENGTH):
        parse_request(request(TEXT_INPUT | {"data": ["a"]}), length)


@settings(max_examples=300)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["inputs", "name", "shape", "data", "datatype", "parameters", "binary_data_size"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    ),
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["image", "pixels", "text"]),
            "datatype": st.sampled_from(["BYTES", "UINT8"]),
        }
    ),
    st.binary(max_size=16),
)
def test_no_request_raises_anything_but_bad_request(
    value: object, tensor: dict[str, object], tail: bytes
) -> None:
    """Whatever is sent, the parser accepts it or says what is wrong."""
    merged = tensor | value if isinstance(value, dict) else tensor | {"data": value, "shape": [1, 1, 1, 3]}
    for content in (value, {"inputs": [value]}, {"inputs": [merged]}):
        header = json.dumps(content).encode()
        for length in (None, str(len(header))):
            for text in (False, True):
                with contextlib.suppress(BadRequest):
                    parse_request(header + tail, length, text=text)


def test_every_output_can_be_binary_and_reads_back() -> None:
    """The binary part is the outputs in order, each as long as its parameter says."""
    prediction = Prediction(
        torch.tensor([[0.25, 0.75], [0.5, 0.5]]), torch.tensor([3, 0]), torch.tensor([0.1, 1.0])
    )
    wanted = InferRequest("x", [], dict.fromkeys(OUTPUTS, True))
    body, headers = encode_response("s", GENERATION, prediction, wanted)
    header = json.loads(body[: int(headers[HEADER_LENGTH])])
    at, parts = int(headers[HEADER_LENGTH]), {}
    for output in header["outputs"]:
        size = output["parameters"]["binary_data_size"]
        parts[output["name"]] = body[at : at + size]
        at += size
    assert at == len(body)
    assert (header["id"], header["model_version"]) == ("x", "7")
    assert parts["label"] == b"\x01\0\0\0b" + b"\x05\0\0\0" + "grün".encode()
    assert np.frombuffer(parts["class_id"], "<i8").tolist() == [3, 0]
    assert np.frombuffer(parts["score"], "<f4").tolist() == [0.75, 0.5]
    assert np.frombuffer(parts["unknown"], "<f4").tolist() == [pytest.approx(0.1), 1.0]
    assert np.frombuffer(parts["scores"], "<f4").tolist() == [0.25, 0.75, 0.5, 0.5]
