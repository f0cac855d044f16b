"""Families: sessions of related classes read through one subspace.

The first session of its kind trains a subspace and founds a family. A later session whose classes are
related to the family's trains nothing: its samples are passed under the founder's units, and its classes join
the family's head, an exact ridge over the founder's subspace. So a family's classes compete under features
adapted to their kind, although no old sample is left, and units are spent on what is new alone. It is the
published alternative, reuse for what is similar and a subspace of its own for what is not, decided for a
whole session.

Without families a session's units only put its own classes in another order. On images held out from
training (CIFAR-10, Fashion-MNIST and QuickDraw, no session of two of them, 56 px) an oracle's families gained
1.6 to 2.2 points over that at a weight of 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cl_engine.heads import RidgeStatistics
from cl_engine.sgds.answer import AnswerNetwork
from cl_engine.sgds.content import Content


def kinship(new: Tensor, old: Tensor, temperature: float) -> float:
    """Return how related new classes are to a family's, 1 for as much as to one another.

    The relation of two classes is exp(cosine / temperature), as in P(y given c). A single new class is
    measured by the relation of the family's classes to one another; where that is one class too, nothing
    says what related means, and the kinship is 0.

    Args:
        new: prototypes of the new classes, (C_new, D).
        old: prototypes of the family's classes, (C_old, D), at least one.
        temperature: of the relation.
    """
    new, old = normalize(new.double(), dim=1), normalize(old.double(), dim=1)
    siblings = new if len(new) > 1 else old
    count = len(siblings)
    if count == 1:
        return 0.0
    # The largest cosine is 1: nothing overflows, and the factor cancels.
    among = ((siblings @ siblings.T - 1) / temperature).exp()
    others = float(among.sum() - among.diagonal().sum()) / (count * (count - 1))
    between = float(((new @ old.T - 1) / temperature).exp().mean())
    return between / max(others, 1e-300)


def family_of(
    new: Tensor,
    old: Tensor,
    old_class_subspace: Tensor,
    founders: list[int],
    *,
    temperature: float,
    threshold: float,
) -> int | None:
    """Return the founder's subspace of the family that a session joins, None for none.

    Args:
        new: prototypes of the session's classes, (C_new, D).
        old: prototypes of the old classes, (C_old, D).
        old_class_subspace: int64 (C_old,).
        founders: subspaces that may be joined.
        temperature: of the relation.
        threshold: least kinship.
    """
    found = {
        founder: kinship(new, old[old_class_subspace == founder], temperature)
        for founder in founders
        if bool((old_class_subspace == founder).any())
    }
    best = max(found, key=lambda founder: found[founder], default=None)
    return best if best is not None and found[best] >= threshold else None


def join(content: Content, founder: int, news: int, weight: float) -> Content:
    """Append a session's classes to a family; its head is fitted by `with_family_heads`.

    Args:
        content: with the masks of the new classes.
        founder: the family's subspace.
        news: how many classes are new.
        weight: of the family's scores against the base scores.
    """
    joined = torch.zeros(len(content.subspaces), dtype=torch.bool)
    if content.joined is not None:
        joined[: len(content.joined)] = content.joined
    joined[founder] = True
    blend = content.blend.clone()
    blend[founder] = weight
    rows = content.subspace_head.shape[0]
    return replace(
        content,
        class_subspace=torch.cat([content.class_subspace, torch.full((news,), founder)]),
        subspace_head=torch.cat([content.subspace_head, torch.zeros(rows, news)], dim=1),
        blend=blend,
        joined=joined,
    )


@torch.no_grad()
def subspace_features(
    network: AnswerNetwork, tokens: Tensor, columns: Tensor, subspace: int, batch_size: int
) -> Tensor:
    """Return standardised features of samples under one subspace, as they are at inference, (N, D2).

    Args:
        network: of a content that has the subspace.
        tokens: (N, T, d).
        columns: class column of each sample, int64 (N,), whose mask is used under `mask_scope` class.
        subspace: which.
        batch_size: samples per pass.
    """
    device = tokens.device
    if not len(columns):
        return torch.zeros(0, network.subspace_mean.shape[1], device=device)
    parts = [
        network.subspace_features(
            tokens[rows.to(device)],
            torch.full((len(rows),), subspace, device=device),
            columns[rows].to(device),
        )
        for rows in torch.split(torch.arange(len(columns)), batch_size)
    ]
    return torch.cat(parts)


def with_family_heads(content: Content, families: Mapping[int, RidgeStatistics]) -> Content:
    """Fit the heads of the families that another session has joined.

    A founder alone keeps the head of its session, whose weight was chosen by validation.

    Args:
        content: whose classes are those of the statistics.
        families: sums of each founder's subspace over the classes of its family.
    """
    if content.joined is None:
        return content
    head = content.subspace_head.clone()
    for founder, statistics in families.items():
        if not bool(content.joined[founder]):
            continue
        member = content.class_subspace == founder
        columns = member.nonzero().squeeze(1)
        own = statistics.of(columns)
        head[:, columns] = own.solve(own.choose_strength()).float().cpu()
    return replace(content, subspace_head=head.contiguous())
