"""Step 0, the semantic strategy: whether a new class reuses old subspaces or gets one of its own.

Published: P(y given c) is a softmax over the cosines between the prototypes of the new class c and of
all classes y, old and new; S_old(c) sums it over the old classes, S_new(c) over the other new ones.
Reconstructed: the comparison of the two, count-normalised (see `SGDSSettings.count_normalised`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize


class Choice(StrEnum):
    """What a new class does about its subspace."""

    REUSE = "reuse"
    ALLOCATE = "allocate"


class Decide(Protocol):
    """How a session's classes decide: `semantic_strategy`, or what an ablation puts in its place."""

    def __call__(
        self, new_prototypes: Tensor, old_prototypes: Tensor, *, temperature: float, count_normalised: bool
    ) -> Strategy:
        """Decide for each new class; see `semantic_strategy`."""
        ...


@dataclass(frozen=True)
class Strategy:
    """The semantic strategy of one session's new classes.

    Attributes:
        choices: one per new class.
        old_relation: float32 (C_new, C_old), P(y given c) restricted to the old classes and renormalised;
            zero columns where there are none.
        s_old, s_new: float32 (C_new,), the sums or means that were compared.
    """

    choices: tuple[Choice, ...]
    old_relation: Tensor
    s_old: Tensor
    s_new: Tensor


def semantic_strategy(
    new_prototypes: Tensor, old_prototypes: Tensor, *, temperature: float, count_normalised: bool
) -> Strategy:
    """Decide for each new class.

    Args:
        new_prototypes: (C_new, D), means of the frozen features of each new class.
        old_prototypes: (C_old, D).
        temperature: of the softmax over cosines.
        count_normalised: compare means over classes instead of sums.
    """
    new = normalize(new_prototypes.float(), dim=1)
    every = torch.cat([normalize(old_prototypes.float(), dim=1), new])
    olds, news = len(old_prototypes), len(new)
    relation = torch.softmax(new @ every.T / temperature, dim=1)
    s_old = relation[:, :olds].sum(dim=1)
    others = relation[:, olds:] * (1 - torch.eye(news))
    s_new = others.sum(dim=1)
    if count_normalised:
        s_old, s_new = s_old / max(olds, 1), s_new / max(news - 1, 1)
    choices = tuple(
        Choice.REUSE if olds and float(s_old[i]) >= float(s_new[i]) else Choice.ALLOCATE for i in range(news)
    )
    old = relation[:, :olds]
    return Strategy(choices, old / old.sum(dim=1, keepdim=True).clamp(min=1e-12), s_old, s_new)


def with_decision(
    strategy: Strategy, decision: Literal["semantic", "reuse", "allocate"], olds: int
) -> Strategy:
    """Overrule the choices of a session; without old classes there is nothing to reuse."""
    if decision == "semantic":
        return strategy
    choice = Choice.REUSE if decision == "reuse" and olds else Choice.ALLOCATE
    return replace(strategy, choices=(choice,) * len(strategy.choices))


def keep_probabilities(
    strategy: Strategy,
    counters: Tensor,
    *,
    reuse_sharpness: float,
    allocate_sharpness: float,
    floor: float,
) -> Tensor:
    """Return the keep probability q of each input activation, float32 (C_new, L, d).

    Reuse: q = 1 - exp(-alpha_s a / max a) with a = sum over y of P(y given c) A[y], the activations that
    similar classes live on. Allocate: q = exp(-alpha_h u / max u) with u = sum over y of
    (1 - P(y given c)) A[y], away from those that dissimilar classes live on. Both are the forms of
    SCoMMER (AAAI 2023), semantic and heterogeneous dropout. Without old classes q is 1.

    Args:
        strategy: from `semantic_strategy`.
        counters: A, (C_old, L, d), how often each activation was among its class's top-K.
        reuse_sharpness: alpha_s.
        allocate_sharpness: alpha_h.
        floor: least probability.
    """
    news = len(strategy.choices)
    if counters.shape[0] == 0:
        return torch.ones(news, *counters.shape[1:])
    # Counters grow with the number of samples; a class with more of them must not weigh more.
    shares = counters / counters.amax(dim=2, keepdim=True).clamp(min=1e-12)
    probabilities = torch.empty(news, *counters.shape[1:])
    for i, choice in enumerate(strategy.choices):
        relation = strategy.old_relation[i]
        weight = relation if choice is Choice.REUSE else 1 - relation
        used = torch.einsum("y,yld->ld", weight, shares)
        used = used / used.amax(dim=1, keepdim=True).clamp(min=1e-12)
        if choice is Choice.REUSE:
            probabilities[i] = 1 - torch.exp(-reuse_sharpness * used)
        else:
            probabilities[i] = torch.exp(-allocate_sharpness * used)
    return probabilities.clamp(min=floor, max=1.0)


def session_to_borrow(strategy: Strategy, old_class_subspace: Tensor, subspaces: int) -> int | None:
    """Return the earlier subspace most related to the classes that reuse, None if none reuses.

    Args:
        strategy: from `semantic_strategy`.
        old_class_subspace: int64 (C_old,), subspace of each old class, -1 where it has none.
        subspaces: how many there are.
    """
    reusing = [i for i, choice in enumerate(strategy.choices) if choice is Choice.REUSE]
    if not reusing or subspaces == 0:
        return None
    mass = torch.zeros(subspaces)
    owned = old_class_subspace >= 0
    relation = strategy.old_relation[reusing].sum(dim=0)[owned]
    mass.index_add_(0, old_class_subspace[owned], relation)
    return int(mass.argmax())
