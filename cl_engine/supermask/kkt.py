"""KKT: start a new session's scores from an earlier session whose features already fit its data.

For each earlier session, a k-nearest-neighbour vote over that subnetwork's penultimate features of the new
session's data measures how well the features tell the new classes apart. The published code takes the
scores of several sessions (`all`) into the first of them, which destroys its mask; here the mean is a new
tensor and nothing earlier changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cl_engine.supermask.network import MaskedNetwork
from cl_engine.supermask.seeding import generator
from cl_engine.supermask.settings import SupermaskSettings

# Of the sampled data, the share whose labels vote; the rest is classified.
VOTER_SHARE = 0.66


@dataclass(frozen=True)
class Transfer:
    """What KKT found.

    Attributes:
        accuracies: accuracy of the neighbour vote in each earlier session's features.
        borrowed: earlier sessions whose scores the new one starts from; empty for a random start.
    """

    accuracies: tuple[float, ...]
    borrowed: tuple[int, ...]


def choose(
    mode: Literal["off", "best", "always", "all"], accuracies: Sequence[float], chance: float
) -> tuple[int, ...]:
    """Pick the earlier sessions to borrow from; of equally good ones the earliest."""
    if mode == "off" or not accuracies:
        return ()
    if mode == "all":
        return tuple(i for i, accuracy in enumerate(accuracies) if accuracy > chance)
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    return (best,) if mode == "always" or accuracies[best] > chance else ()


def neighbour_accuracy(
    voters: Tensor, voter_labels: Tensor, queries: Tensor, query_labels: Tensor, neighbours: int
) -> float:
    """Classify queries by the majority of their nearest voters (Euclidean) and return the accuracy.

    Args:
        voters: features (V, F).
        voter_labels: int64 (V,).
        queries: features (Q, F).
        query_labels: int64 (Q,).
        neighbours: k; at most V of them vote. Of equally frequent labels the smallest wins.
    """
    distances = torch.cdist(queries, voters)
    nearest = distances.topk(min(neighbours, len(voters)), dim=1, largest=False).indices
    votes = voter_labels[nearest].mode(dim=1).values
    return (votes == query_labels).double().mean().item()


def transfer(
    network: MaskedNetwork, inputs: Tensor, labels: Tensor, settings: SupermaskSettings, seed: int
) -> Transfer:
    """Rank the earlier sessions on the new session's data and choose among them.

    The cost is one forward pass of at most `kkt_samples` samples per earlier session.

    Args:
        network: the sessions learnt so far.
        inputs: the new session's training inputs (N, ...).
        labels: its labels, int64 (N,), 0 to classes - 1.
        settings: `kkt`, `kkt_neighbours` and `kkt_samples`.
        seed: decides the sample.

    Raises:
        ValueError: fewer than three samples, or an earlier session kept no scores.
    """
    if settings.kkt == "off" or not network.sessions:
        return Transfer((), ())
    if len(inputs) < 3:
        raise ValueError(f"kkt needs at least 3 samples to hold a vote, the session has {len(inputs)}")
    without = [i for i, session in enumerate(network.sessions) if not session.scores]
    if without:
        raise ValueError(
            f"kkt is {settings.kkt!r} but sessions {without} kept no scores: set it from the first"
        )
    random = generator(seed, len(network.sessions), "kkt")
    chosen = torch.randperm(len(inputs), generator=random)[: settings.kkt_samples]
    sample, sample_labels = inputs[chosen], labels[chosen].cpu()
    voters = min(len(chosen) - 1, round(VOTER_SHARE * len(chosen)))
    accuracies = []
    for session in range(len(network.sessions)):
        features = network.features(session, sample, settings.batch_size)
        accuracies.append(
            neighbour_accuracy(
                features[:voters],
                sample_labels[:voters],
                features[voters:],
                sample_labels[voters:],
                settings.kkt_neighbours,
            )
        )
    chance = 1 / (int(labels.max()) + 1)
    return Transfer(tuple(accuracies), choose(settings.kkt, accuracies, chance))


def borrowed_scores(network: MaskedNetwork, borrowed: Sequence[int]) -> dict[str, Tensor]:
    """Return new tensors with the mean scores of these sessions, one per layer."""
    return {
        name: torch.stack([network.sessions[i].scores[name] for i in borrowed]).mean(dim=0)
        for name in network.weights
    }
