"""Task inference: which session do unlabelled inputs belong to."""

from __future__ import annotations

import pytest
import torch

from cl_engine.supermask.network import MaskedNetwork, call
from cl_engine.supermask.task_inference import (
    binary_search,
    coefficient_gradients,
    lowest_entropy,
    one_shot,
)
from tests.support.supermasks import blobs, perceptron, quick, trained, without_norms

SESSIONS = 4
SETTINGS = quick(method="supsup", epochs=20, density=0.3)


@pytest.fixture(scope="module", params=["top_share", "threshold"])
def plain(request: pytest.FixtureRequest) -> MaskedNetwork:
    """Train four sessions of three classes under a head of forty outputs, without norms."""
    settings = SETTINGS.model_copy(update={"selection": request.param})
    return trained(MaskedNetwork.create(lambda: without_norms(40), seed=0), SESSIONS, settings)


@pytest.mark.parametrize("objective", ["entropy", "surplus"])
@pytest.mark.parametrize("search", [one_shot, binary_search])
def test_a_batch_finds_its_session(plain: MaskedNetwork, search, objective: str) -> None:
    """Every session's own data is given back to it."""
    assert [search(plain, blobs(i)[0], objective) for i in range(SESSIONS)] == list(range(SESSIONS))


def test_with_norms_single_inputs_find_their_session_by_the_lowest_entropy() -> None:
    """Input by input, most are right; chance is a quarter."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), SESSIONS, SETTINGS)
    for session in range(SESSIONS):
        found = lowest_entropy(network, blobs(session)[0])
        assert found.shape == (96,)
        assert (found == session).float().mean() > 0.8


@pytest.mark.parametrize("build", [lambda: without_norms(40), lambda: perceptron(40)])
@pytest.mark.parametrize("objective", ["entropy", "surplus"])
def test_gradients_equal_those_of_differentiable_coefficients(build, objective: str) -> None:
    """Autograd through W * sum(a_i M_i), written out, with the norms held fixed."""
    network = trained(MaskedNetwork.create(build, seed=0), 3, quick(method="supsup"))
    values = [0.5, 0.2, 0.3]
    coefficients = torch.tensor(values, requires_grad=True)
    masks = [network.masks(session) for session in range(3)]
    effective = {
        name: weight * sum(a * mask[name] for a, mask in zip(coefficients, masks, strict=True))
        for name, weight in network.weights.items()
    }
    norms = {
        name: sum(a * session.norms[name] for a, session in zip(values, network.sessions, strict=True))
        for name in network.sessions[0].norms
    }
    network.architecture.eval()
    logits = call(network.architecture, effective | norms, blobs(0)[0])
    if objective == "entropy":
        value = torch.distributions.Categorical(logits=logits[:, :3]).entropy().mean()
    else:
        value = torch.cat([logits[:, :3].detach(), logits[:, 3:]], dim=1).logsumexp(dim=1).mean()
    value.backward()
    found = coefficient_gradients(network, blobs(0)[0], values, objective)
    assert torch.allclose(found, coefficients.grad, rtol=1e-3, atol=1e-5)


def test_surplus_needs_outputs_beyond_the_classes() -> None:
    """With as many outputs as classes there is none."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 1, quick(epochs=2))
    with pytest.raises(ValueError, match="all 3 outputs belong to classes"):
        one_shot(network, blobs(0)[0], "surplus")


def test_a_network_without_sessions_is_refused() -> None:
    """There is nothing to choose from."""
    network = MaskedNetwork.create(perceptron, seed=0)
    for search in (one_shot, binary_search):
        with pytest.raises(ValueError, match="session"):
            search(network, blobs(0)[0])
