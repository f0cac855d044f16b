"""The frozen text encoder, on a small network with random weights and a small vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cl_engine.backbones import BlockwiseBackbone, DecodeLimits, load_backbone
from cl_engine.errors import AssetError, InputError
from cl_engine.text_encoder import build_network
from tests.support.small_encoder import DEPTH, WIDTH, WORDS, make_encoder, state_dict


def test_it_is_a_backbone_that_can_be_read_block_by_block() -> None:
    """What the methods ask of a backbone."""
    assert isinstance(make_encoder(), BlockwiseBackbone)
    assert (make_encoder().depth, make_encoder().width) == (DEPTH, WIDTH)


def test_texts_become_padded_ids() -> None:
    """WordPiece, lower case, [CLS] and [SEP], zeros behind; cut at the limit with [SEP] kept."""
    ids = make_encoder().tokenise(["My cards", "lost lost lost lost lost lost lost lost", "unknown"])
    assert ids.tolist() == [
        [2, 5, 4, 8, 3, 0, 0, 0],
        [2, 6, 6, 6, 6, 6, 6, 3],
        [2, 1, 3, 0, 0, 0, 0, 0],
    ]


def test_no_texts_become_no_rows() -> None:
    """An empty batch keeps its second side."""
    assert make_encoder().tokenise([]).shape == (0, 8)


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS[4:8]), min_size=1, max_size=5), st.integers(8, 16))
def test_padding_and_neighbours_change_nothing(words: list[str], max_tokens: int) -> None:
    """A text's embedding does not depend on the padded length or on the rest of the batch."""
    text = " ".join(words)
    short = make_encoder(8)
    alone = short.features(short.tokenise([text]))
    longer = make_encoder(max_tokens)
    beside = longer.features(longer.tokenise([text, "my card is lost my card"]))
    torch.testing.assert_close(alone[0], beside[0], atol=1e-5, rtol=0)


def test_every_layer_has_a_place_for_each_token_and_zeros_behind() -> None:
    """The padding travels inside the tokens; embeddings have length one."""
    encoder = make_encoder()
    ids = encoder.tokenise(["my card", "my card is lost"])
    layers = [encoder.embed(ids), *encoder.advance(encoder.embed(ids), 0, DEPTH)]
    assert [tuple(s.shape) for s in layers] == [(2, 8, WIDTH)] * (DEPTH + 1)
    for states in layers:
        assert torch.equal((states != 0).any(dim=-1), ids != 0)
    assert torch.equal(encoder.last(layers[1], 1), layers[-1])
    assert encoder.layer_features(layers[-1]).shape == (2, 2 * WIDTH)
    torch.testing.assert_close(encoder.features(ids).norm(dim=1), torch.ones(2))


def test_layer_features_are_the_first_state_and_the_mean_of_the_present_ones() -> None:
    """By hand: of the first text's three places the last is padding."""
    states = torch.tensor([[[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]], [[1.0, -1.0], [-1.0, 1.0], [5.0, 9.0]]])
    # Layer norm makes (1, -1), (-1, 1) and (5, 9) into (1, -1), (-1, 1) and (-1, 1).
    expected = torch.tensor([[1.0, -1.0, 0.0, 0.0], [1.0, -1.0, -1 / 3, 1 / 3]])
    torch.testing.assert_close(make_encoder().layer_features(states), expected, atol=1e-4, rtol=0)


def test_an_adapter_adds_to_the_layer_before_its_norm() -> None:
    """By hand, with the modules of the last layer; a zero adapter changes nothing."""
    encoder = make_encoder()
    tokens = encoder.embed(encoder.tokenise(["my card is lost", "my card"]))
    before = next(encoder.advance(tokens, 0, 1))
    layer = encoder.network.layers[1]
    seen: list[Tensor] = []

    def adapter(index: int, inputs: Tensor) -> Tensor:
        assert index == 1
        seen.append(inputs)
        return inputs * 0.5

    adapted = encoder.last(before, 1, adapter)
    (inputs,) = seen
    expected = layer.output_norm(1.5 * inputs + layer.perceive(inputs))
    torch.testing.assert_close(adapted[0, :6], expected[0], atol=1e-5, rtol=0)
    assert torch.equal((adapted != 0).any(dim=-1), (tokens != 0).any(dim=-1))
    assert torch.equal(encoder.last(before, 1, lambda _, x: torch.zeros_like(x)), encoder.last(before, 1))


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS[4:8]), min_size=1, max_size=4))
def test_what_an_adapter_averages_does_not_depend_on_the_batch(words: list[str]) -> None:
    """Empty places hold the mean over the text's tokens, so that means over places are means over tokens."""
    encoder = make_encoder()
    means: list[Tensor] = []

    def record(_: int, inputs: Tensor) -> Tensor:
        means.append(inputs.mean(dim=1)[0])
        return inputs

    for texts in ([" ".join(words)], [" ".join(words), "my card is lost my card"]):
        encoder.last(encoder.embed(encoder.tokenise(texts)), 0, record)
    alone, beside = means[:DEPTH], means[DEPTH:]
    torch.testing.assert_close(torch.stack(alone), torch.stack(beside), atol=1e-5, rtol=0)


def test_an_adapter_learns_from_tokens_alone() -> None:
    """The gradient of a loss on a padded text is that of the text without padding."""
    weight = torch.full((WIDTH,), 0.1, requires_grad=True)
    gradients = []
    for max_tokens in (5, 12):
        encoder = make_encoder(max_tokens)
        tokens = encoder.embed(encoder.tokenise(["my card lost", "my"]))
        features = encoder.layer_features(encoder.last(tokens, 0, lambda _, x: x * weight))
        (gradient,) = torch.autograd.grad(features.square().mul(torch.arange(2 * WIDTH)).sum(), weight)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-3)
    assert gradients[0].abs().max() > 0


def test_an_all_padding_row_is_finite() -> None:
    """A row without any token must not poison a batch."""
    encoder = make_encoder()
    assert encoder.features(torch.zeros(1, 8, dtype=torch.int64)).isfinite().all()
    assert encoder.features(encoder.blank(2)).isfinite().all()


@pytest.mark.parametrize("ids", [torch.zeros(1, 7, dtype=torch.int64), torch.zeros(1, 8, dtype=torch.uint8)])
def test_inputs_of_another_shape_are_refused(ids: Tensor) -> None:
    """The message names what was expected and what came."""
    with pytest.raises(ValueError, match=r"expected int64 token ids \(B, 8\), got torch"):
        make_encoder().embed(ids)


@pytest.mark.parametrize(
    ("payload", "content_type", "said"),
    [
        (b"my card", "image/png", "'image/png' is not a text, which this stream takes: use text/plain"),
        (b"my card", "text/plain; charset=latin-1", "charset is not supported: send UTF-8"),
        (b"\xff\xfe", "text/plain", r"not UTF-8 \(byte 0\): send UTF-8"),
        (b" \n", "text/plain; charset=utf-8", "empty: send some words"),
        (b"", "text/plain", "empty: send some words"),
        (b"card " * 7, "text/plain", "35 bytes, the limit is 32: send a part of it or raise limits"),
    ],
)
def test_what_is_no_text_is_refused(payload: bytes, content_type: str, said: str) -> None:
    """The reason is for people."""
    encoder = make_encoder()
    encoder.limits = DecodeLimits(max_text_bytes=32)
    with pytest.raises(InputError, match=said):
        encoder.decode(payload, content_type)


def test_a_payload_becomes_one_row() -> None:
    """UTF-8 may be named, in any case and quotes; ASCII is a part of it."""
    for content_type in ("text/plain", 'Text/Plain; Charset="UTF-8"', "text/plain;charset=us-ascii; x=y"):
        assert make_encoder().decode(b"my card", content_type).tolist() == [2, 5, 4, 3, 0, 0, 0, 0]


@pytest.mark.parametrize("spoil", ["missing", "left over", "shape"])
def test_weights_that_do_not_fit_are_refused(spoil: str) -> None:
    """Loading is strict."""
    state = state_dict()
    name = "encoder.layer.1.attention.self.key.bias"
    if spoil == "missing":
        del state[name]
    elif spoil == "left over":
        state["encoder.layer.0.lora"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(WIDTH + 1)
    with pytest.raises(AssetError, match="not those of a BERT encoder"):
        build_network(state)
    with pytest.raises(AssetError, match="words"):
        build_network({})


def test_a_backbone_of_texts_is_asked_for_by_its_name() -> None:
    """What does not go with a text encoder is refused before anything is loaded."""
    with pytest.raises(ValueError, match=r"other\.safetensors: the text encoder .* leave weights out"):
        load_backbone("all-MiniLM-L6-v2", weights=Path("other.safetensors"))
    with pytest.raises(ValueError, match=r"nor a text encoder \(all-MiniLM-L6-v2\)"):
        load_backbone("all-MiniLM-L7")


def test_the_frozen_network_has_nothing_to_train() -> None:
    """No parameter asks for a gradient."""
    assert not any(p.requires_grad for p in make_encoder().network.parameters())
