"""Which methods of a comparison continue from tokens, and learners that the registry does not make."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cl_engine.bench.data import BenchData
from cl_engine.bench.run import reads_tokens, run_method
from cl_engine.bench.stream import Stream
from cl_engine.cached_features import CachedExtract
from cl_engine.learners import create
from cl_engine.samples import TensorSamples
from tests.support.small_backbone import images, small_backbone


@pytest.mark.parametrize(
    ("method", "options", "reads"),
    [
        ("ridge", {}, False),
        ("ridge", {"adapt_first_session": True}, True),
        ("ranpac", {}, False),
        ("ncm", {}, False),
        ("sgds", {}, True),
        ("finetune", {}, True),
        ("joint", {}, True),
    ],
)
def test_only_methods_with_adapters_read_tokens(method: str, options: dict[str, Any], reads: bool) -> None:
    """Tokens are most of what a cache holds: nobody pays for them who does not need them."""
    assert reads_tokens(method, options) is reads


def samples(part: str, seed: int) -> TensorSamples:
    """Draw ten images of each of four classes."""
    inputs, labels = images(range(4), 10, seed)
    return TensorSamples(inputs, labels, [f"{part}-{i}" for i in range(len(labels))])


def test_a_learner_that_is_passed_in_runs_the_sessions() -> None:
    """It is measured as the one that the registry makes."""
    torch.set_num_threads(1)
    backbone = small_backbone()
    data = BenchData(
        "made", ("a", "b", "c", "d"), *(samples(p, s) for p, s in (("x", 1), ("y", 2), ("z", 3)))
    )
    stream = Stream(data, ((0, 1), (2, 3)), 0)
    options = {"feature_blocks": 2, "adapter_blocks": 2, "adapt_first_session": True}
    cache = CachedExtract(backbone, 2, 1)
    learner = create("ridge", backbone, options, cache)
    given = run_method("ridge", backbone, stream, options, cache, learner=learner)
    assert given.matrix == run_method("ridge", backbone, stream, options, cache).matrix
    assert given.figures()["a_t"] > 0.6
