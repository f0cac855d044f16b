"""Convert published weights into the state dictionaries that timm and our text encoder load."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from cl_engine.assets.archives import Members

WEIGHTS = "weights.safetensors"
TOKENISER = "tokenizer.json"

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def convert_dinov2(members: Members, directory: Path) -> None:
    """Rebuild timm's DINOv2 ViT state dictionary from its ONNX export.

    The exporter stored the position embedding without its first row, because that row is
    bit-identical to the class token; and it transposed every linear layer's weight into a MatMul.

    Raises:
        ValueError: the graph is not the export this was written for.
    """
    graph = _only_graph(members)
    arrays = _initialisers(graph)
    tied = {node.input[0] for node in graph.node if node.op_type == "Identity"}
    positions = [name for name in arrays if name.startswith("onnx::Reshape")]
    if "model.cls_token" not in tied or len(positions) != 1:
        raise ValueError("the class token and the position embedding are not tied as expected")
    cls_token = arrays["model.cls_token"]
    state = {name.removeprefix("model."): a for name, a in arrays.items() if name.startswith("model.")}
    state["pos_embed"] = np.concatenate([cls_token, arrays[positions[0]]], axis=1)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            layer = _module_path(node.name).removesuffix(".MatMul")
            state[f"{layer}.weight"] = arrays[node.input[1]].T
    _save(state, directory)


def convert_tinyvit(members: Members, directory: Path) -> None:
    """Rebuild timm's TinyViT state dictionary from its ONNX export.

    The exporter folded every batch norm into the convolution before it. The folded weights stay in
    the convolution, and the batch norm becomes the identity plus the folded bias (its variance is
    1 - eps, so that timm's eps of 1e-5 adds up to exactly one).

    Raises:
        ValueError: the graph is not the export this was written for.
    """
    graph = _only_graph(members)
    arrays = _initialisers(graph)
    state = {name: a for name, a in arrays.items() if not name.startswith("onnx::")}
    for node in graph.node:
        path = _module_path(node.name)
        if node.op_type == "MatMul" and node.input[1] in arrays:
            state[f"{path.removesuffix('.MatMul')}.weight"] = arrays[node.input[1]].T
        elif node.op_type == "Conv":
            convolution = path.removesuffix(".Conv")
            state[f"{convolution}.weight"] = arrays[node.input[1]]
            norm = f"{convolution.removesuffix('.conv')}.bn"
            bias = arrays[node.input[2]]
            state[f"{norm}.weight"] = np.ones_like(bias)
            state[f"{norm}.bias"] = bias
            state[f"{norm}.running_mean"] = np.zeros_like(bias)
            state[f"{norm}.running_var"] = np.full_like(bias, 1 - 1e-5)
            state[f"{norm}.num_batches_tracked"] = np.zeros((), dtype=np.int64)
    _save(state, directory)


def convert_minilm(members: Members, directory: Path) -> None:
    """Keep the encoder's tensors and its tokeniser; the pooler and the position ids are not used.

    Raises:
        ValueError: the weights are not safetensors.
    """
    files = {PurePosixPath(name).name: content for name, content in members.items()}
    try:
        state = load(files["model.safetensors"])
    except SafetensorError as error:
        raise ValueError("model.safetensors is damaged") from error
    unused = ("pooler.", "embeddings.position_ids")
    _save({name: array for name, array in state.items() if not name.startswith(unused)}, directory)
    (directory / TOKENISER).write_bytes(files["tokenizer.json"])


def _only_graph(members: Members) -> onnx.GraphProto:
    (content,) = members.values()
    return onnx.load_from_string(content).graph


def _initialisers(graph: onnx.GraphProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _module_path(node_name: str) -> str:
    """Turn a node's name into a module path: the exporter repeats the names of nested containers.

    `/stages/stages.1/blocks/blocks.0/mlp/fc1/MatMul` is `stages.1.blocks.0.mlp.fc1.MatMul`.
    """
    parts: list[str] = []
    for part in node_name.strip("/").split("/"):
        if parts and part.startswith(f"{parts[-1]}."):
            part = part.split(".", 1)[1]
        parts.append(part)
    return ".".join(parts)


def _save(state: dict[str, Array], directory: Path) -> None:
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, directory / WEIGHTS)
