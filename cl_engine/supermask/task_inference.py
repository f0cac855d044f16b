"""Find out which session unlabelled inputs belong to.

SupSup's way lays all masks over each other, W * (a_0 M_0 + a_1 M_1 + ...), and asks which coefficient a_i
an objective wants to grow: one forward and one backward pass, however many sessions there are. Two
objectives: `entropy` of the softmax, low under the right mask; and `surplus`, the log-sum-exp of the logits
with gradients through the surplus outputs alone, those beyond any session's classes, which training kept
low under the right mask (SupSup's G; its superfluous neurons).

All inputs of one call are taken to be of one session; more of them give a surer answer. Norm statistics
are superposed with the same coefficients but carry no gradient: batch norm in evaluation has none for
them. `entropy` works all the same, `surplus` only for networks without norms, as in SupSup's experiments.
`lowest_entropy` runs every subnetwork instead, costs T passes, and decides for each input by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cl_engine.supermask.network import MaskedNetwork, call

Objective = Literal["entropy", "surplus"]


def one_shot(network: MaskedNetwork, inputs: Tensor, objective: Objective = "entropy") -> int:
    """Return the session whose coefficient has the most negative gradient at the uniform superposition.

    Args:
        network: at least one session.
        inputs: (N, ...), all of one session.
        objective: `entropy`, or `surplus`, which needs a head wider than every session.

    Raises:
        ValueError: no session, or no surplus output.
    """
    sessions = len(network.sessions)
    gradients = coefficient_gradients(network, inputs, [1 / max(sessions, 1)] * sessions, objective)
    return int(gradients.argmin())


def binary_search(network: MaskedNetwork, inputs: Tensor, objective: Objective = "entropy") -> int:
    """Halve the candidates until one is left: ceil(log2(T)) passes.

    Each round superposes the candidates with equal coefficients and keeps the half with the more negative
    gradients. Arguments and errors as for `one_shot`.
    """
    if not network.sessions:
        raise ValueError("the network has no session to infer: train one first")
    candidates = list(range(len(network.sessions)))
    while len(candidates) > 1:
        coefficients = [0.0] * len(network.sessions)
        for candidate in candidates:
            coefficients[candidate] = 1 / len(candidates)
        gradients = coefficient_gradients(network, inputs, coefficients, objective)
        order = sorted(candidates, key=lambda candidate: gradients[candidate].item())
        candidates = sorted(order[: (len(order) + 1) // 2])
    return candidates[0]


def lowest_entropy(network: MaskedNetwork, inputs: Tensor, batch_size: int = 256) -> Tensor:
    """Return for each input the session whose subnetwork is surest of its answer, int64 (N,).

    The entropy is divided by its largest value, the logarithm of the session's class count, so that
    sessions of different sizes compare; a session of a single class is always sure and wins only ties
    between such sessions.
    """
    relative = []
    for session, subnetwork in enumerate(network.sessions):
        logits = network.logits(session, inputs, batch_size)
        if subnetwork.classes == 1:
            relative.append(torch.ones(len(inputs)))
        else:
            relative.append(_entropy(logits) / torch.tensor(float(subnetwork.classes)).log())
    return torch.stack(relative).argmin(dim=0)


def coefficient_gradients(
    network: MaskedNetwork, inputs: Tensor, coefficients: Sequence[float], objective: Objective
) -> Tensor:
    """Differentiate an objective with respect to each session's coefficient, float32 (T,).

    Memory does not grow with the sessions: the gradient is taken once, at the superposed mask, and each
    session's share of it is its inner product with that session's mask.

    Args:
        network: T sessions.
        inputs: (N, ...).
        coefficients: T coefficients; sessions with 0 are left out of the superposition.
        objective: `entropy` or `surplus`.

    Raises:
        ValueError: no session, coefficients that do not fit, or no surplus output.
    """
    if not network.sessions or len(coefficients) != len(network.sessions):
        raise ValueError(
            f"{len(coefficients)} coefficients for {len(network.sessions)} sessions: one each, at least one"
        )
    real = max(session.classes for session in network.sessions)
    if objective == "surplus" and real == network.head_width:
        raise ValueError(
            f"objective is 'surplus' but all {real} outputs belong to classes: build a wider head, or use "
            "'entropy'"
        )
    superposed = {name: torch.zeros_like(weight) for name, weight in network.weights.items()}
    norms = {name: torch.zeros_like(norm) for name, norm in network.sessions[0].norms.items()}
    for session, coefficient in enumerate(coefficients):
        if coefficient:
            for name, mask in network.masks(session).items():
                superposed[name] += coefficient * mask
            for name, norm in network.sessions[session].norms.items():
                norms[name] += coefficient * norm
    for mask in superposed.values():
        mask.requires_grad_()
    effective = {name: weight * superposed[name] for name, weight in network.weights.items()}
    network.architecture.eval()
    logits = call(network.architecture, effective | norms, inputs.to(network.device))
    if objective == "entropy":
        value = _entropy(logits[:, :real]).mean()
    else:
        value = torch.cat([logits[:, :real].detach(), logits[:, real:]], dim=1).logsumexp(dim=1).mean()
    names = list(superposed)
    slopes = dict(zip(names, torch.autograd.grad(value, [superposed[name] for name in names]), strict=True))
    shares = [
        torch.stack([slopes[name][mask].sum() for name, mask in network.masks(session).items()]).sum()
        for session in range(len(network.sessions))
    ]
    return torch.stack(shares).cpu()


def _entropy(logits: Tensor) -> Tensor:
    logarithms = logits.log_softmax(dim=1)
    return -(logarithms.exp() * logarithms).sum(dim=1)
