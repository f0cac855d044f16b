"""The Open Inference Protocol's requests and responses, with its binary tensor extension.

Inputs (exactly one): of a stream of images `image` BYTES [n], encoded files, base64 in JSON, or `pixels`
UINT8 [n, H, W, 3]; of a stream of texts `text` BYTES [n], strings in JSON. Outputs: `label` BYTES [n],
`class_id` INT64 [n], `score` FP32 [n], `unknown` FP32 [n], and if asked for `scores` FP32 [n, C].
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from cl_engine.learners.base import Prediction
from daemon.errors import BadRequest
from daemon.messages.formats import TEXT
from daemon.serving.payloads import Payload, sniff
from daemon.serving.slot import GenerationRef

HEADER_LENGTH = "Inference-Header-Content-Length"
INPUTS = {"image": "BYTES", "pixels": "UINT8", "text": "BYTES"}
OUTPUTS = {"label": "BYTES", "class_id": "INT64", "score": "FP32", "unknown": "FP32", "scores": "FP32"}
DEFAULT_OUTPUTS = ("label", "class_id", "score", "unknown")
_DTYPES = {"INT64": "<i8", "FP32": "<f4"}


class InputTensor(BaseModel):
    """One input as the JSON part has it."""

    name: str
    shape: list[int] = Field(min_length=1, max_length=8)
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class OutputChoice(BaseModel):
    """One output that the client wants."""

    name: str
    parameters: dict[str, Any] = {}


class InferEnvelope(BaseModel):
    """The JSON part of an inference request; unknown members are ignored, as the protocol says."""

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: list[InputTensor] = Field(min_length=1)
    outputs: list[OutputChoice] | None = None


@dataclass(frozen=True)
class InferRequest:
    """A parsed request.

    Attributes:
        id: the client's, given back in the response.
        payloads: encoded inputs.
        outputs: names of the outputs wanted, and whether each goes into the binary part.
    """

    id: str | None
    payloads: Sequence[Payload]
    outputs: Mapping[str, bool]


# -- requests
def inputs_of(*, text: bool) -> tuple[str, ...]:
    """Name the inputs of a model, of which a request has one."""
    return ("text",) if text else ("image", "pixels")


def parse_request(body: bytes, header_length: str | None, *, text: bool = False) -> InferRequest:
    """Parse a request body.

    Args:
        body: JSON, followed by binary tensors if there is a header length.
        header_length: value of `Inference-Header-Content-Length`, the length of the JSON part.
        text: whether the model takes texts, not images.

    Raises:
        BadRequest: with the field, the value and the remedy.
    """
    size = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or int(header_length) > len(body):
            raise BadRequest(
                f"{HEADER_LENGTH} is {header_length[:32]!r}: it must be the length of the JSON part, "
                f"at most the body's {len(body)} bytes"
            )
        size = int(header_length)
    try:
        envelope = InferEnvelope.model_validate_json(body[:size])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise BadRequest(f"{place}: {first['msg']}") from error
    known = inputs_of(text=text)
    if len(envelope.inputs) != 1 or envelope.inputs[0].name not in known:
        names = ", ".join(repr(tensor.name[:64]) for tensor in envelope.inputs[:8])
        kind = "texts" if text else "images"
        raise BadRequest(
            f"inputs are {names}: this model takes {kind}, send exactly one of {', '.join(known)}"
        )
    tensor = envelope.inputs[0]
    payloads = _payloads(tensor, memoryview(body)[size:], envelope.parameters)
    return InferRequest(envelope.id, payloads, _wanted(envelope))


def _payloads(tensor: InputTensor, binary: memoryview, parameters: Mapping[str, Any]) -> list[Payload]:
    expected = INPUTS[tensor.name]
    if tensor.datatype != expected:
        raise BadRequest(f"input {tensor.name!r} has datatype {tensor.datatype[:16]!r}: send {expected}")
    if any(side < 0 for side in tensor.shape):
        raise BadRequest(f"input {tensor.name!r} has shape {tensor.shape}: no side may be negative")
    declared = tensor.parameters.get("binary_data_size")
    if declared is None and tensor.data is None:
        raise BadRequest(f"input {tensor.name!r} has neither data nor binary_data_size: send one of them")
    if declared is not None and (tensor.data is not None or declared != len(binary)):
        raise BadRequest(
            f"input {tensor.name!r} has binary_data_size {declared!r} and the binary part has "
            f"{len(binary)} bytes: they must be equal, and data must be left out"
        )
    if tensor.name == "pixels":
        return _pixels(tensor, binary if declared is not None else None)
    if math.prod(tensor.shape) != tensor.shape[0]:
        raise BadRequest(f"input {tensor.name!r} has shape {tensor.shape}: send [n] or [n, 1]")
    values = _split_bytes(binary) if declared is not None else _json_bytes(tensor)
    if len(values) != tensor.shape[0]:
        raise BadRequest(f"input {tensor.name!r} has shape {tensor.shape} and {len(values)} elements")
    content_type = tensor.parameters.get("content_type", parameters.get("content_type"))
    if content_type is not None and not isinstance(content_type, str):
        raise BadRequest(f"content_type is {content_type!r}: it must be a string such as 'image/jpeg'")
    if tensor.name == "text":
        return [Payload(value, content_type or TEXT) for value in values]
    return [Payload(value, content_type or sniff(value)) for value in values]


def _json_bytes(tensor: InputTensor) -> list[bytes]:
    assert tensor.data is not None
    values: list[bytes] = []
    for element in tensor.data:
        # [n, 1] may come nested.
        value = element[0] if isinstance(element, list) and len(element) == 1 else element
        if not isinstance(value, str):
            raise BadRequest(f"input {tensor.name!r} has an element that is not a string")
        if tensor.name == "text":
            values.append(value.encode())
            continue
        try:
            values.append(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError) as error:
            raise BadRequest(f"input 'image', element {len(values)}: not base64: {error}") from error
    return values


def _split_bytes(binary: memoryview) -> list[bytes]:
    """Split a binary BYTES tensor: each element follows its length as 4 bytes, little-endian."""
    values: list[bytes] = []
    at = 0
    while at < len(binary):
        if at + 4 > len(binary):
            raise BadRequest("the binary BYTES tensor ends within an element's length")
        (length,) = struct.unpack_from("<I", binary, at)
        if at + 4 + length > len(binary):
            raise BadRequest(
                f"element {len(values)} of the binary BYTES tensor claims {length} bytes, "
                f"{len(binary) - at - 4} are left"
            )
        values.append(bytes(binary[at + 4 : at + 4 + length]))
        at += 4 + length
    return values


def _pixels(tensor: InputTensor, binary: memoryview | None) -> list[Payload]:
    shape = tensor.shape
    if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
        raise BadRequest(f"input 'pixels' has shape {shape}: send [n, height, width, 3], RGB")
    if binary is not None:
        array: npt.NDArray[Any] = np.frombuffer(binary, np.uint8)
    else:
        try:
            array = np.asarray(tensor.data).reshape(-1)
        except ValueError as error:
            raise BadRequest(
                "input 'pixels' is nested unevenly: send it flat or as its shape says"
            ) from error
        if array.size and (array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255):
            raise BadRequest("input 'pixels' has an element that is not an integer from 0 to 255")
        array = array.astype(np.uint8)
    if array.size != math.prod(shape):
        raise BadRequest(f"input 'pixels' has shape {shape} and {array.size} elements")
    # One preprocessing path for every image: BMP is lossless, and writing it is little more than a copy.
    return [Payload(_bmp(image), "image/bmp") for image in array.reshape(shape)]


def _bmp(image: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image, "RGB").save(buffer, "BMP")
    return buffer.getvalue()


def _wanted(envelope: InferEnvelope) -> dict[str, bool]:
    everything = _flag(envelope.parameters, "binary_data_output", default=False)
    if not envelope.outputs:
        return dict.fromkeys(DEFAULT_OUTPUTS, everything)
    wanted = {}
    for output in envelope.outputs:
        if output.name not in OUTPUTS:
            raise BadRequest(f"output {output.name[:64]!r} does not exist: ask for {', '.join(OUTPUTS)}")
        wanted[output.name] = _flag(output.parameters, "binary_data", default=everything)
    return wanted


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{name} is {value!r}: it must be true or false")
    return value


# -- responses
def encode_response(
    model: str, generation: GenerationRef, prediction: Prediction, request: InferRequest
) -> tuple[bytes, dict[str, str]]:
    """Encode an answer.

    Returns:
        The body and its headers.
    """
    outputs, parts = [], []
    for name, binary in request.outputs.items():
        values = _output(name, generation, prediction)
        tensor: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name], "shape": _shape(values)}
        if binary:
            part = _binary(values, OUTPUTS[name])
            tensor["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
        else:
            tensor["data"] = values if isinstance(values, list) else values.reshape(-1).tolist()
        outputs.append(tensor)
    content: dict[str, Any] = {
        "model_name": model,
        "model_version": str(generation.number),
        "parameters": {"generation": generation.digest, "generation_number": generation.number},
        "outputs": outputs,
    }
    if request.id is not None:
        content["id"] = request.id
    header = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    if not parts:
        return header, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return b"".join([header, *parts]), headers


def _output(name: str, generation: GenerationRef, prediction: Prediction) -> list[str] | npt.NDArray[Any]:
    if name == "label":
        return [generation.labels[i] for i in prediction.class_ids.tolist()]
    values = {
        "class_id": lambda: prediction.class_ids,
        "score": lambda: prediction.scores.amax(dim=1),
        "unknown": lambda: prediction.unknown,
        "scores": lambda: prediction.scores,
    }[name]()
    array: npt.NDArray[Any] = values.numpy()
    return array


def _shape(values: list[str] | npt.NDArray[Any]) -> list[int]:
    return [len(values)] if isinstance(values, list) else list(values.shape)


def _binary(values: list[str] | npt.NDArray[Any], datatype: str) -> bytes:
    if isinstance(values, list):
        encoded = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(value)) + value for value in encoded)
    return values.astype(_DTYPES[datatype]).tobytes()


def model_metadata(model: str, versions: Sequence[GenerationRef], *, text: bool) -> dict[str, Any]:
    """Describe a model; versions are the resident generations, the live one first."""
    inputs = inputs_of(text=text)
    shapes = {"pixels": [-1, -1, -1, 3], "scores": [-1, -1]}
    return {
        "name": model,
        "versions": [str(ref.number) for ref in versions],
        "platform": "accrete",
        "inputs": [{"name": i, "datatype": INPUTS[i], "shape": shapes.get(i, [-1])} for i in inputs],
        "outputs": [{"name": o, "datatype": OUTPUTS[o], "shape": shapes.get(o, [-1])} for o in OUTPUTS],
    }
