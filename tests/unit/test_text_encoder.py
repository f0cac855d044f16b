"""The frozen text encoder, on a small network with random weights and a small vocabulary."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from cl_engine.errors import AssetError, InputError
from cl_engine.text_encoder import FrozenTextEncoder, build_network

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "card", "my", "lost", "is", "##s")
WIDTH, HIDDEN, DEPTH, POSITIONS = 64, 96, 2, 16


def state_dict() -> dict[str, Tensor]:
    """Make weights under the names that published BERT encoders use."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random) * 0.2

    state = {
        "embeddings.word_embeddings.weight": draw(len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": draw(POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": draw(2, WIDTH),
        "embeddings.LayerNorm.weight": 1 + draw(WIDTH),
        "embeddings.LayerNorm.bias": draw(WIDTH),
    }
    for index in range(DEPTH):
        layer = f"encoder.layer.{index}"
        shapes = {
            "attention.self.query": (WIDTH, WIDTH),
            "attention.self.key": (WIDTH, WIDTH),
            "attention.self.value": (WIDTH, WIDTH),
            "attention.output.dense": (WIDTH, WIDTH),
            "intermediate.dense": (HIDDEN, WIDTH),
            "output.dense": (WIDTH, HIDDEN),
        }
        for name, shape in shapes.items():
            state[f"{layer}.{name}.weight"] = draw(*shape)
            state[f"{layer}.{name}.bias"] = draw(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            state[f"{layer}.{name}.weight"] = 1 + draw(WIDTH)
            state[f"{layer}.{name}.bias"] = draw(WIDTH)
    return state


def tokeniser() -> Tokenizer:
    """Make a WordPiece tokeniser of a few words."""
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    return made


def make_encoder(max_length: int = 8) -> FrozenTextEncoder:
    """Make an encoder in float32 on the CPU."""
    network = build_network(state_dict())
    return FrozenTextEncoder("small", network, tokeniser(), max_length, torch.device("cpu"), torch.float32)


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
def test_padding_and_neighbours_change_nothing(words: list[str], max_length: int) -> None:
    """A text's embedding does not depend on the padded length or on the rest of the batch."""
    text = " ".join(words)
    short = make_encoder(8)
    alone = short.features(short.tokenise([text]))
    longer = make_encoder(max_length)
    beside = longer.features(longer.tokenise([text, "my card is lost my card"]))
    torch.testing.assert_close(alone[0], beside[0], atol=1e-5, rtol=0)


def test_embeddings_have_length_one_and_layers_are_all_there() -> None:
    """One state tensor for the embedding and each layer; the longest text decides their length."""
    encoder = make_encoder()
    ids = encoder.tokenise(["my card", "my card is lost"])
    states = list(encoder.states(ids))
    assert [tuple(s.shape) for s in states] == [(2, 6, WIDTH)] * (DEPTH + 1)
    assert encoder.layer_features(states[-1], ids).shape == (2, 2 * WIDTH)
    torch.testing.assert_close(encoder.features(ids).norm(dim=1), torch.ones(2))


def test_layer_features_are_the_first_state_and_the_mean_of_the_present_ones() -> None:
    """By hand: of three places the last is padding."""
    encoder = make_encoder()
    states = torch.zeros(1, 3, 2)
    states[0] = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [5.0, 9.0]])
    ids = torch.tensor([[2, 3, 0], [2, 3, 3]])[:1]
    padded = torch.cat([ids, torch.tensor([[2, 3, 3]])])
    features = encoder.layer_features(states.expand(2, -1, -1), padded)
    # Layer norm makes (1, -1), (-1, 1) and (5, 9) into (1, -1), (-1, 1) and (-1, 1).
    expected = torch.tensor([[1.0, -1.0, 0.0, 0.0], [1.0, -1.0, -1 / 3, 1 / 3]])
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


def test_an_all_padding_row_is_finite() -> None:
    """A row without any token must not poison a batch."""
    encoder = make_encoder()
    assert encoder.features(torch.zeros(1, 8, dtype=torch.int64)).isfinite().all()


@pytest.mark.parametrize(
    ("payload", "content_type", "said"),
    [
        (b"my card", "image/png", "not a text: use text/plain"),
        (b"\xff\xfe", "text/plain", "not UTF-8"),
        (b" \n", "text/plain; charset=utf-8", "empty"),
    ],
)
def test_what_is_no_text_is_refused(payload: bytes, content_type: str, said: str) -> None:
    """The reason is for people."""
    with pytest.raises(InputError, match=said):
        make_encoder().decode(payload, content_type)


def test_a_payload_becomes_one_row() -> None:
    """Parameters of the content type do not matter."""
    row = make_encoder().decode(b"my card", "Text/Plain; charset=utf-8")
    assert row.tolist() == [2, 5, 4, 3, 0, 0, 0, 0]


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


def test_the_frozen_network_has_nothing_to_train() -> None:
    """No parameter asks for a gradient."""
    assert not any(p.requires_grad for p in make_encoder().network.parameters())
