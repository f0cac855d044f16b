"""A text encoder of a few thousand random weights and a vocabulary of nine words."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

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


def make_encoder(max_tokens: int = 8) -> FrozenTextEncoder:
    """Make an encoder in float32 on the CPU."""
    network = build_network(state_dict())
    return FrozenTextEncoder("small", network, tokeniser(), max_tokens, torch.device("cpu"), torch.float32)
