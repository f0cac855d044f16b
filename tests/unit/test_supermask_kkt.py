"""KKT: which earlier session a new one starts from."""

from __future__ import annotations

import pytest
import torch

from cl_engine.supermask.kkt import Transfer, borrowed_scores, choose, neighbour_accuracy, transfer
from cl_engine.supermask.network import MaskedNetwork, to_tensors
from cl_engine.supermask.training import train_session
from tests.support.supermasks import blobs, perceptron, quick, trained


@pytest.mark.parametrize(
    ("mode", "accuracies", "chance", "expected"),
    [
        ("best", [0.4, 0.8, 0.6], 0.5, (1,)),
        ("best", [0.4, 0.45], 0.5, ()),
        ("best", [0.5], 0.5, ()),
        ("best", [0.7, 0.7], 0.5, (0,)),
        ("always", [0.1, 0.2], 0.5, (1,)),
        ("all", [0.6, 0.5, 0.9], 0.5, (0, 2)),
        ("all", [0.1, 0.2], 0.5, ()),
        ("off", [0.9], 0.5, ()),
        ("always", [], 0.5, ()),
    ],
)
def test_the_choice(mode: str, accuracies: list[float], chance: float, expected: tuple[int, ...]) -> None:
    """`best` must beat chance, `always` need not, `all` takes every one that does."""
    assert choose(mode, accuracies, chance) == expected


def test_the_neighbour_vote_worked_by_hand() -> None:
    """On a line: the query at 0.9 has neighbours 1 and 0 (labels 1, 1) and 3 (label 0)."""
    voters = torch.tensor([[0.0], [1.0], [3.0], [3.5], [4.0]])
    voter_labels = torch.tensor([1, 1, 0, 0, 0])
    queries = torch.tensor([[0.9], [3.6]])
    assert neighbour_accuracy(voters, voter_labels, queries, torch.tensor([1, 0]), 3) == 1
    assert neighbour_accuracy(voters, voter_labels, queries, torch.tensor([0, 0]), 3) == 0.5
    # More neighbours than voters: all vote, 0 has the majority everywhere.
    assert neighbour_accuracy(voters, voter_labels, queries, torch.tensor([1, 0]), 200) == 0.5


def test_it_borrows_from_the_session_that_saw_the_same_data() -> None:
    """Session 1's data again: its own subnetwork separates it best, and training starts from its scores."""
    settings = quick(kkt="always", method="supsup", density=0.05, epochs=15)
    network = trained(MaskedNetwork.create(perceptron, seed=0), 3, settings)
    found = transfer(network, *blobs(1, samples=300), settings, seed=1)
    assert len(found.accuracies) == 3
    assert found.accuracies[1] == max(found.accuracies)
    start = borrowed_scores(network, [1])
    assert all(torch.equal(start[name], network.sessions[1].scores[name]) for name in start)


def test_the_mean_of_several_is_new_and_changes_none_of_them() -> None:
    """The mean of sessions 0 and 1, in tensors of its own; writing to it reaches no session."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 2, quick(kkt="all"))
    before = {name: tensor.clone() for name, tensor in to_tensors(network).items()}
    start = borrowed_scores(network, [0, 1])
    for name, score in start.items():
        expected = (network.sessions[0].scores[name] + network.sessions[1].scores[name]) / 2
        assert torch.allclose(score, expected)
        score.zero_()
    for name, score in borrowed_scores(network, [0]).items():
        score.zero_()
        assert score.shape == network.weights[name].shape
    after = to_tensors(network)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_result_says_what_was_borrowed() -> None:
    """Nothing in the first session, one earlier session afterwards, None where KKT is off."""
    network = MaskedNetwork.create(perceptron, seed=0)
    first = train_session(network, *blobs(0), quick(kkt="always"), seed=1)
    assert first.transfer == Transfer((), ())
    second = train_session(first.network, *blobs(1), quick(kkt="always"), seed=1)
    assert second.transfer is not None
    assert second.transfer.borrowed == (0,)
    assert train_session(network, *blobs(0), quick(), seed=1).transfer is None


def test_the_cost_is_bounded_by_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the session, each earlier subnetwork sees `kkt_samples` inputs."""
    settings = quick(kkt="best", kkt_samples=20)
    network = trained(MaskedNetwork.create(perceptron, seed=0), 2, settings)
    seen: list[int] = []
    features = MaskedNetwork.features

    def counted(self: MaskedNetwork, session: int, inputs: torch.Tensor, batch_size: int) -> torch.Tensor:
        seen.append(len(inputs))
        return features(self, session, inputs, batch_size)

    monkeypatch.setattr(MaskedNetwork, "features", counted)
    transfer(network, *blobs(2, samples=500), settings, seed=1)
    assert seen == [20, 20]


def test_sessions_without_scores_are_refused() -> None:
    """KKT switched on halfway has nothing to start from; the error names the sessions."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 2, quick())
    with pytest.raises(ValueError, match=r"sessions \[0, 1\] kept no scores"):
        transfer(network, *blobs(2), quick(kkt="best"), seed=1)
