"""A frozen sentence encoder (BERT's architecture), block by block, as a source of features of texts.

Texts have different lengths, batches have one. So every text has `max_tokens` places, and a place without
a token holds a state of zeros, before the first layer and after each: the padding travels inside the
tokens, to whoever keeps them, and nobody needs a mask beside them. A token's own state is never all zero,
for each layer ends in a norm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, normalize, pad, scaled_dot_product_attention

from cl_engine import assets
from cl_engine.backbones.blockwise import BlockAdapter
from cl_engine.backbones.digest import weights_digest
from cl_engine.backbones.frozen import DEFAULT_MAX_TOKENS, DecodeLimits
from cl_engine.backbones.precision import choose_device, choose_dtype
from cl_engine.errors import AssetError, InputError

TEXT = "text/plain"
PADDING = 0
# MiniLM's head width; the state dictionary does not tell how many heads share a layer's width.
HEAD_WIDTH = 32
_EPSILON = 1e-12


class _Layer(nn.Module):
    """One BERT layer: attention, then a two-layer perceptron, each followed by its residual and norm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, eps=_EPSILON)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.output_norm = nn.LayerNorm(width, eps=_EPSILON)

    def attend(self, states: Tensor, attendable: Tensor) -> Tensor:
        """Map token states (B, T, d) to the perceptron's input; `attendable` is boolean (B, 1, 1, T)."""
        q, k, v = (self._heads(part(states)) for part in (self.query, self.key, self.value))
        attended = scaled_dot_product_attention(q, k, v, attn_mask=attendable)
        attended = attended.transpose(1, 2).reshape(states.shape)
        result: Tensor = self.attended_norm(states + self.attended(attended))
        return result

    def perceive(self, attended: Tensor) -> Tensor:
        """Return the perceptron's output (B, T, d), which is added to its input and normed."""
        result: Tensor = self.down(gelu(self.up(attended)))
        return result

    def _heads(self, projected: Tensor) -> Tensor:
        batch, length, _ = projected.shape
        return projected.view(batch, length, -1, HEAD_WIDTH).transpose(1, 2)


class _Network(nn.Module):
    def __init__(self, words: int, positions: int, width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.positions = nn.Embedding(positions, width)
        self.segments = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.layers = nn.ModuleList(_Layer(width, hidden) for _ in range(depth))


class FrozenTextEncoder:
    """A frozen sentence encoder as a `BlockwiseBackbone`; a block is a BERT layer.

    Args:
        id: encoder name, length limit and weights digest; generations are bound to it.
        network: the encoder's modules with their weights.
        tokeniser: turns text into WordPiece ids.
        max_tokens: texts are cut to this many tokens, [CLS] and [SEP] included, and padded to it.
        device, dtype: where and in which format it computes.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - the manifest's word
        network: _Network,
        tokeniser: Tokenizer,
        max_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.id = id
        self.network = network.eval().requires_grad_(False).to(device=device, dtype=dtype)
        self.max_tokens = max_tokens
        self.device = device
        self.dtype = dtype
        self.content_types = frozenset({TEXT})
        self.limits = DecodeLimits()
        self._tokeniser = tokeniser
        self._tokeniser.enable_truncation(max_tokens)
        self._tokeniser.enable_padding(length=max_tokens, pad_id=PADDING)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.network.layers)

    @property
    def width(self) -> int:
        """Length d of a token state."""
        return self.network.words.embedding_dim

    @property
    def widths(self) -> tuple[int, ...]:
        """Length of a token state after each block."""
        return (self.width,) * self.depth

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Decode a text payload to token ids, int64 (max_tokens,), zero-padded.

        Raises:
            InputError: not `text/plain`, not UTF-8, too long, or without any text.
        """
        return self.tokenise([read_text(payload, content_type, self.limits.max_text_bytes)])[0]

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """Turn texts into token ids, int64 (B, max_tokens), zero-padded and cut where too long."""
        ids = [encoding.ids for encoding in self._tokeniser.encode_batch(list(texts))]
        return torch.tensor(ids, dtype=torch.int64).reshape(-1, self.max_tokens)

    def blank(self, rows: int) -> Tensor:
        """Return texts without a word, int64 (rows, max_tokens)."""
        return self.tokenise([""] * rows)

    def embed(self, inputs: Tensor) -> Tensor:
        """Turn token ids, int64 (B, max_tokens), into the first layer's input (B, max_tokens, d).

        Raises:
            ValueError: the ids have another type or length.
        """
        if inputs.dtype != torch.int64 or inputs.shape[1:] != (self.max_tokens,):
            raise ValueError(
                f"expected int64 token ids (B, {self.max_tokens}), got {inputs.dtype} {tuple(inputs.shape)}"
            )
        ids, network = inputs.to(self.device), self.network
        places = network.positions.weight[: self.max_tokens]
        embedded = network.norm(network.words(ids) + places + network.segments.weight[0])
        return _zeroed(embedded, ids != PADDING)

    def advance(
        self, tokens: Tensor, start: int, stop: int, adapter: BlockAdapter | None = None
    ) -> Iterator[Tensor]:
        """Run layers start..stop-1 and yield the tokens (B, L, d) after each, zeros where there is none.

        Only the places up to the longest text's end are computed. An adapter sees those, the empty ones
        filled with the mean over the text's tokens: what it averages over places is then the average
        over tokens, whatever the batch.

        Args:
            tokens: input of layer `start`.
            start: first layer to run.
            stop: layer to stop before.
            adapter: added in parallel to each layer's MLP, before the norm that ends the layer.
        """
        places = tokens.shape[1]
        present = _present(tokens)
        longest = max(1, int(present.any(dim=0).sum()))
        tokens, present = tokens[:, :longest], present[:, :longest]
        for index in range(start, stop):
            layer = self.network.layers[index]
            assert isinstance(layer, _Layer)
            attended = layer.attend(tokens, present[:, None, None, :])
            change = layer.perceive(attended)
            if adapter is not None:
                change = change + adapter(index, _filled(attended, present))
            tokens = _zeroed(layer.output_norm(attended + change), present)
            yield pad(tokens, (0, 0, 0, places - longest))

    def last(self, tokens: Tensor, start: int, adapter: BlockAdapter | None = None) -> Tensor:
        """Run the layers from `start` on and return the last one's output tokens (B, L, d)."""
        (output,) = deque(self.advance(tokens, start, self.depth, adapter), maxlen=1)
        return output

    def layer_features(self, tokens: Tensor) -> Tensor:
        """Summarise one layer: its [CLS] state and the mean over its tokens, float32 (B, 2d).

        Both are layer-normed without parameters, so that layers of different scale can stand side by
        side.
        """
        present = _present(tokens)
        normed = layer_norm(tokens.float(), (tokens.shape[-1],))
        return torch.cat([normed[:, 0], _mean(normed, present)], dim=1)

    @torch.inference_mode()
    def features(self, inputs: Tensor) -> Tensor:
        """Return sentence embeddings, float32 (B, d): mean over the tokens, scaled to length one."""
        last = self.last(self.embed(inputs), 0)
        return normalize(_mean(last.float(), _present(last)), dim=1)


def read_text(payload: bytes, content_type: str, max_bytes: int) -> str:
    """Read a `text/plain` payload.

    Args:
        payload: UTF-8.
        content_type: `text/plain`; a `charset` must be UTF-8 or ASCII.
        max_bytes: of the payload.

    Raises:
        InputError: another content type or charset, not UTF-8, too long, or without any text.
    """
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    if kind != TEXT:
        raise InputError(f"content type {content_type!r} is not a text, which this stream takes: use {TEXT}")
    for parameter in parameters:
        name, _, charset = parameter.partition("=")
        if name.strip() == "charset" and charset.strip(' "') not in {"utf-8", "utf8", "us-ascii"}:
            raise InputError(f"content type {content_type!r}: the charset is not supported: send UTF-8")
    if len(payload) > max_bytes:
        raise InputError(
            f"the text has {len(payload)} bytes, the limit is {max_bytes}: send a part of it or raise "
            "limits.max_text_bytes"
        )
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the text is not UTF-8 (byte {error.start}): send UTF-8") from error
    if not text.strip():
        raise InputError("the text is empty: send some words")
    return text


def load_text_encoder(
    name: str = "all-MiniLM-L6-v2",
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    device: str = "auto",
    dtype: str = "auto",
) -> FrozenTextEncoder:
    """Load a text encoder of the asset catalogue and freeze it.

    Args:
        name: the catalogue's name.
        max_tokens: texts are cut to this many tokens.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, `float32` or `bfloat16`.

    Raises:
        AssetError: the weights could not be had, or do not fit the architecture.
        ValueError: the catalogue has no such encoder, or it cannot take texts of that length.
    """
    state, tokeniser = assets.text_encoder_weights(name)
    network = build_network(state)
    longest = network.positions.num_embeddings
    if not 3 <= max_tokens <= longest:
        raise ValueError(f"max_tokens must be 3 to {longest} for {name}, is {max_tokens}")
    where = choose_device(device)
    return FrozenTextEncoder(
        id=f"{name}@{max_tokens}tok-{weights_digest(state)[:16]}",
        network=network,
        tokeniser=Tokenizer.from_file(str(tokeniser)),
        max_tokens=max_tokens,
        device=where,
        dtype=choose_dtype(dtype, where),
    )


def build_network(state: Mapping[str, Tensor]) -> _Network:
    """Build the modules that a BERT state dictionary describes, and load it strictly.

    Raises:
        AssetError: tensors are missing, left over, or of the wrong shape.
    """
    renamed = {_our_name(name): tensor for name, tensor in state.items()}
    try:
        words, width = renamed["words.weight"].shape
        positions = len(renamed["positions.weight"])
        hidden = len(renamed["layers.0.up.weight"])
        depth = sum(name.endswith(".up.weight") for name in renamed)
        network = _Network(words, positions, width, hidden, depth)
        network.load_state_dict(renamed, strict=True)
    except (KeyError, RuntimeError) as error:
        raise AssetError(f"the weights are not those of a BERT encoder: {error}") from error
    return network


_NAMES = (
    ("embeddings.word_embeddings.", "words."),
    ("embeddings.position_embeddings.", "positions."),
    ("embeddings.token_type_embeddings.", "segments."),
    ("embeddings.LayerNorm.", "norm."),
    ("encoder.layer.", "layers."),
    ("attention.self.", ""),
    ("attention.output.dense.", "attended."),
    ("attention.output.LayerNorm.", "attended_norm."),
    ("intermediate.dense.", "up."),
    ("output.dense.", "down."),
    ("output.LayerNorm.", "output_norm."),
)


def _our_name(name: str) -> str:
    for theirs, ours in _NAMES:
        name = name.replace(theirs, ours)
    return name


def _present(tokens: Tensor) -> Tensor:
    """Return which places hold a token, bool (B, L)."""
    return (tokens != 0).any(dim=-1)


def _zeroed(states: Tensor, present: Tensor) -> Tensor:
    return states.masked_fill(~present.unsqueeze(-1), 0)


def _filled(states: Tensor, present: Tensor) -> Tensor:
    mean = _mean(_zeroed(states, present).float(), present).to(states.dtype)
    return torch.where(present.unsqueeze(-1), states, mean.unsqueeze(1))


def _mean(zeroed: Tensor, present: Tensor) -> Tensor:
    """Average (B, L, d) over the places that hold a token; the others are zero."""
    return zeroed.sum(dim=1) / present.sum(dim=1, keepdim=True).clamp(min=1)
