"""Masked networks: scores, architectures, subnetworks, and their flat form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from cl_engine.supermask.architectures import Architecture, FeatureMLP, LeNet, ResNet18, TextCNN
from cl_engine.supermask.network import MaskedNetwork, call, from_tensors, to_tensors
from cl_engine.supermask.scores import (
    fresh_scores,
    signed_kaiming_constant,
    straight_through_mask,
    straight_through_threshold,
    threshold_masks,
)
from cl_engine.supermask.seeding import generator
from tests.support.supermasks import blobs, perceptron, quick, trained, without_norms


class Biased(Architecture):
    """A network with a bias, which no mask selects from."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def penultimate(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the inputs."""
        return inputs


def test_the_straight_through_gradient_worked_by_hand() -> None:
    """With W_eff = W * mask and loss sum(c * W_eff), each score's gradient is c * W * sign(score)."""
    weight = torch.tensor([2.0, -3.0, 5.0, -7.0])
    score = torch.tensor([0.5, -0.4, -0.1, 0.2], requires_grad=True)
    factor = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    mask = straight_through_mask(score, 0.5)
    assert mask.tolist() == [1, 1, 0, 0]
    (factor * weight * mask).sum().backward()
    # Also where the mask is 0: that is what lets a dropped weight come back.
    assert score.grad is not None
    assert score.grad.tolist() == [2, 30, -500, -7000]


def test_shared_weights_have_one_magnitude_and_both_signs() -> None:
    """Signed Kaiming constant: +-sqrt(2 / fan_in), fan_in = 3 * 5 * 5."""
    weights = signed_kaiming_constant(torch.Size([40, 3, 5, 5]), generator(0))
    assert torch.equal(weights.abs(), torch.full_like(weights, math.sqrt(2 / 75)))
    assert 0.4 < (weights > 0).float().mean() < 0.6


def test_the_threshold_keeps_what_is_not_negative_and_passes_gradients_on() -> None:
    """Of -0.1, 0 and 0.2 the last two are kept; each score gets its entry's gradient, sign and all."""
    score = torch.tensor([-0.1, 0.0, 0.2], requires_grad=True)
    mask = straight_through_threshold(score)
    assert mask.tolist() == [0, 1, 1]
    assert threshold_masks({"layer": score})["layer"].tolist() == [False, True, True]
    mask.backward(torch.tensor([1.0, -2.0, 3.0]))
    assert score.grad is not None
    assert score.grad.tolist() == [1, -2, 3]


def test_fresh_scores_stay_within_their_bound() -> None:
    """U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), fan_in = 100."""
    scores = fresh_scores(torch.Size([50, 100]), generator(0))
    assert 0.095 < scores.max() <= 0.1
    assert -0.1 <= scores.min() < -0.095


def test_random_streams_do_not_depend_on_each_other() -> None:
    """The same purpose gives the same numbers, another purpose or seed others."""
    first = torch.rand(4, generator=generator(3, "shuffle", 7))
    assert torch.equal(first, torch.rand(4, generator=generator(3, "shuffle", 7)))
    assert not torch.equal(first, torch.rand(4, generator=generator(3, "shuffle", 8)))
    assert not torch.equal(first, torch.rand(4, generator=generator(4, "shuffle", 7)))


@pytest.mark.parametrize(
    ("build", "shape", "features"),
    [
        (lambda: LeNet(7), (1, 28, 28), 100),
        (lambda: FeatureMLP(24, [16, 12], 7), (24,), 12),
        (lambda: TextCNN(24, 7, filters=10), (9, 24), 30),
        (lambda: ResNet18(7, width=4), (3, 32, 32), 32),
    ],
    ids=["lenet", "mlp", "text", "resnet"],
)
def test_architectures_give_features_and_logits(
    build: Callable[[], Architecture], shape: tuple[int, ...], features: int
) -> None:
    """Penultimate features of the stated width, and logits of the head over exactly those features."""
    network = MaskedNetwork.create(build, seed=0)
    tensors = dict(network.weights) | network.fresh_norms()
    network.architecture.eval()
    inputs = torch.rand(2, *shape)
    penultimate = call(network.architecture, tensors, inputs, penultimate=True)
    assert penultimate.shape == (2, features)
    expected = penultimate @ network.weights["head.weight"].T
    assert torch.allclose(call(network.architecture, tensors, inputs), expected, atol=1e-5)


def test_the_paper_networks_have_the_papers_sizes() -> None:
    """LeNet 784-300-100-10 and the narrow ResNet18: every weight, no bias."""
    assert MaskedNetwork.create(lambda: LeNet(10), 0).size == 784 * 300 + 300 * 100 + 100 * 10
    assert MaskedNetwork.create(lambda: ResNet18(5), 0).weights["head.weight"].shape == (5, 160)


def test_zero_padding_does_not_change_a_text() -> None:
    """Padding states are zero and no layer has a bias, so they add nothing to the maximum."""
    network = MaskedNetwork.create(lambda: TextCNN(24, 5, filters=8), seed=0)
    states = torch.rand(2, 9, 24)
    padded = torch.cat([states, torch.zeros(2, 20, 24)], dim=1)
    longer = torch.cat([padded, torch.zeros(2, 20, 24)], dim=1)
    assert torch.allclose(
        call(network.architecture, network.weights, padded),
        call(network.architecture, network.weights, longer),
    )


def test_a_bias_is_refused() -> None:
    """The error names the parameter and the remedy."""
    with pytest.raises(ValueError, match=r"'head.bias' of Biased .* bias=False"):
        MaskedNetwork.create(Biased, seed=0)


def test_a_subnetwork_is_the_network_with_the_other_weights_at_zero() -> None:
    """Logits under session 1's masks equal those of plain layers with the dropped weights zeroed."""
    network = trained(MaskedNetwork.create(without_norms, seed=0), 2, quick())
    inputs, _ = blobs(1)
    weights = {name: torch.where(mask, network.weights[name], 0) for name, mask in network.masks(1).items()}
    hidden = (inputs @ weights["first.weight"].T).relu()
    hidden = (hidden @ weights["second.weight"].T).relu()
    assert torch.allclose(network.features(1, inputs), hidden, atol=1e-5)
    assert torch.allclose(network.logits(1, inputs), hidden @ weights["head.weight"].T, atol=1e-4)


def test_used_joins_all_masks() -> None:
    """True where any session reads the weight."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 3, quick(method="supsup"))
    masks = [network.masks(session) for session in range(3)]
    for name, used in network.used().items():
        assert torch.equal(used, masks[0][name] | masks[1][name] | masks[2][name])


@pytest.mark.parametrize("kkt", ["off", "best"])
def test_the_flat_form_survives_safetensors(kkt: str) -> None:
    """Written and read again, the network answers with the same bits and keeps what it kept."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 2, quick(kkt=kkt))
    again = from_tensors(perceptron, load(save(to_tensors(network))))
    inputs, _ = blobs(0)
    for session in range(2):
        assert torch.equal(again.logits(session, inputs), network.logits(session, inputs))
        assert again.sessions[session].scores.keys() == network.sessions[session].scores.keys()
    assert bool(network.sessions[0].scores) == (kkt != "off")


def test_tensors_of_another_architecture_are_refused() -> None:
    """The error names the architecture."""
    flat = to_tensors(MaskedNetwork.create(perceptron, seed=0))
    with pytest.raises(ValueError, match="do not fit LeNet"):
        from_tensors(without_norms, flat)
