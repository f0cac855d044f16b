"""How a supermask generation keeps its masks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cl_engine.errors import UnsupportedGeneration
from cl_engine.generation import Generation
from cl_engine.masks.coding import entropy_bytes
from cl_engine.supermask.content import read_content
from cl_engine.supermask.learner import ExSSNeTLearner
from cl_engine.supermask.learner_settings import ExSSNeTSettings
from tests.support.small_backbone import images, session_data, small_backbone

CPU = torch.device("cpu")
CODED = "network/session/0/coded_masks"
SETTINGS = ExSSNeTSettings(feature_blocks=2, hidden=(64,), outputs=4, epochs=2, density=0.1, batch_size=16)


def learner() -> ExSSNeTLearner:
    """Build a small learner."""
    return ExSSNeTLearner(small_backbone(), SETTINGS)


@pytest.fixture(scope="module")
def first() -> Generation:
    """Learn one session."""
    return learner().learn(session_data(0, [0, 1, 2], []), None)


def of_an_earlier_release(generation: Generation) -> Generation:
    """Rewrite a generation as releases before the coding made it: masks of its own."""
    network = read_content(generation, CPU).network
    tensors = {name: tensor for name, tensor in generation.tensors.items() if name != CODED}
    masks = {f"network/session/0/masks/{name}": mask for name, mask in network.masks(0).items()}
    return replace(generation, tensors=tensors, masks=masks)


def test_masks_are_kept_near_their_entropy(first: Generation) -> None:
    """At density 10 % the coded masks are well below one bit a weight, which they were before."""
    masks = read_content(first, CPU).network.masks(0)
    weights = sum(mask.numel() for mask in masks.values())
    assert not first.masks
    assert len(first.tensors[CODED]) < 0.75 * weights / 8
    assert len(first.tensors[CODED]) < 1.1 * entropy_bytes(masks) + 9 * len(masks)


def test_generations_of_earlier_releases_answer_and_are_built_on(first: Generation) -> None:
    """The same scores, and the next session makes the same generation, coded."""
    earlier = of_an_earlier_release(first)
    assert earlier.digest != first.digest
    inputs, _ = images(range(3), 4, seed=90)
    now, before = (learner().servable(generation).predict(inputs).scores for generation in (first, earlier))
    assert torch.equal(now, before)
    second = session_data(1, [3, 4], [0, 1, 2])
    assert learner().learn(second, earlier).digest == learner().learn(second, first).digest


def test_damaged_and_doubled_masks_are_refused(first: Generation) -> None:
    """The error says which session's, and what is wrong."""
    tensors = dict(first.tensors)
    with pytest.raises(UnsupportedGeneration, match=r"session/0/coded_masks: .* is damaged"):
        learner().servable(replace(first, tensors=tensors | {CODED: tensors[CODED][:-1]}))
    with pytest.raises(UnsupportedGeneration, match="has its masks already"):
        learner().servable(replace(of_an_earlier_release(first), tensors=tensors))
    stray = {"network/session/7/coded_masks": tensors[CODED]}
    with pytest.raises(UnsupportedGeneration, match="belongs to no session"):
        learner().servable(replace(first, tensors=tensors | stray))
