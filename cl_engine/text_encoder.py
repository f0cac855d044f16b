"""A frozen sentence encoder (BERT's architecture) as a source of features of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, normalize, scaled_dot_product_attention

from cl_engine import assets
from cl_engine.backbones.load import weights_digest
from cl_engine.backbones.precision import choose_device, choose_dtype
from cl_engine.errors import AssetError, InputError

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

    def forward(self, states: Tensor, attendable: Tensor) -> Tensor:
        """Map token states (B, L, d) to the next layer's; `attendable` is boolean (B, 1, 1, L)."""
        q, k, v = (self._heads(part(states)) for part in (self.query, self.key, self.value))
        attended = scaled_dot_product_attention(q, k, v, attn_mask=attendable)
        attended = attended.transpose(1, 2).reshape(states.shape)
        states = self.attended_norm(states + self.attended(attended))
        result: Tensor = self.output_norm(states + self.down(gelu(self.up(states))))
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
    """A frozen sentence encoder that can be read at any layer.

    Args:
        id: encoder name, length limit and weights digest; generations are bound to it.
        network: the encoder's modules with their weights.
        tokeniser: turns text into WordPiece ids.
        max_length: texts are cut to this many tokens, [CLS] and [SEP] included.
        device, dtype: where and in which format it computes.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - the manifest's word
        network: _Network,
        tokeniser: Tokenizer,
        max_length: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.id = id
        self.network = network.eval().requires_grad_(False).to(device=device, dtype=dtype)
        self.max_length = max_length
        self.device = device
        self.dtype = dtype
        self._tokeniser = tokeniser
        self._tokeniser.enable_truncation(max_length)
        self._tokeniser.enable_padding(length=max_length, pad_id=PADDING)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.network.layers)

    @property
    def width(self) -> int:
        """Length d of a token state."""
        return self.network.words.embedding_dim

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Decode a text payload to token ids, int64 (max_length,), zero-padded.

        Raises:
            InputError: not `text/plain`, not UTF-8, or without any text.
        """
        if content_type.split(";")[0].strip().lower() != "text/plain":
            raise InputError(f"content type {content_type!r} is not a text: use text/plain")
        try:
            text = payload.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"the text is not UTF-8: {error}") from error
        if not text.strip():
            raise InputError("the text is empty")
        return self.tokenise([text])[0]

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """Turn texts into token ids, int64 (B, max_length), zero-padded and cut where too long."""
        ids = [encoding.ids for encoding in self._tokeniser.encode_batch(list(texts))]
        return torch.tensor(ids, dtype=torch.int64).reshape(-1, self.max_length)

    def states(self, ids: Tensor) -> Iterator[Tensor]:
        """Yield the token states (B, T, d) of the embedding and after each layer.

        T is the length of the longest text in the batch: columns that are padding in every row are
        left out. States at padded places are meaningless.

        Args:
            ids: int64 (B, L), as `tokenise` makes them.
        """
        ids = _trimmed(ids).to(self.device)
        places = torch.arange(ids.shape[1], device=self.device)
        network = self.network
        embedded = network.words(ids) + network.positions(places) + network.segments.weight[0]
        states: Tensor = network.norm(embedded)
        yield states
        attendable = (ids != PADDING)[:, None, None, :]
        for layer in network.layers:
            states = layer(states, attendable)
            yield states

    def layer_features(self, states: Tensor, ids: Tensor) -> Tensor:
        """Summarise one layer: its [CLS] state and the mean over its tokens, float32 (B, 2d).

        Both are layer-normed without parameters, so that layers of different scale can stand side by
        side.
        """
        normed = layer_norm(states.float(), (states.shape[-1],))
        return torch.cat([normed[:, 0], _mean(normed, ids)], dim=1)

    @torch.inference_mode()
    def features(self, inputs: Tensor) -> Tensor:
        """Return sentence embeddings, float32 (B, d): mean over the tokens, scaled to length one."""
        *_, last = self.states(inputs)
        return normalize(_mean(last.float(), inputs), dim=1)


def load_text_encoder(
    name: str = "all-MiniLM-L6-v2", *, max_length: int = 128, device: str = "auto", dtype: str = "auto"
) -> FrozenTextEncoder:
    """Load a text encoder of the asset catalogue and freeze it.

    Args:
        name: the catalogue's name.
        max_length: texts are cut to this many tokens.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, `float32` or `bfloat16`.

    Raises:
        AssetError: the weights could not be had, or do not fit the architecture.
        ValueError: the catalogue has no such encoder, or it cannot take texts of that length.
    """
    state, tokeniser = assets.text_encoder_weights(name)
    network = build_network(state)
    longest = network.positions.num_embeddings
    if not 3 <= max_length <= longest:
        raise ValueError(f"max_length must be 3 to {longest} for {name}, is {max_length}")
    where = choose_device(device)
    return FrozenTextEncoder(
        id=f"{name}@{max_length}tok-{weights_digest(state)[:16]}",
        network=network,
        tokeniser=Tokenizer.from_file(str(tokeniser)),
        max_length=max_length,
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


def _trimmed(ids: Tensor) -> Tensor:
    used = (ids != PADDING).any(dim=0)
    length = sum(1 for _ in takewhile(bool, used.tolist()))
    return ids[:, : max(length, 1)]


def _mean(states: Tensor, ids: Tensor) -> Tensor:
    present = (_trimmed(ids) != PADDING).to(states.device, states.dtype).unsqueeze(-1)
    return (states * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)
