"""What an SGDS generation's subspaces know, and what choosing one of them costs."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_engine.bench.stream import Stream
from cl_engine.features import BaseFeatures
from cl_engine.heads import Standardiser
from cl_engine.heads.ridge import fit_ridge, leave_one_out, ridge_scores
from cl_engine.samples import SampleSet
from cl_engine.sgds.servable import SGDSServable
from tests.benchmarks.class_streams import OpenStream

BATCH = 64


@torch.no_grad()
def analyse(opened: OpenStream, servable: SGDSServable, stream: Stream, *, bound: bool) -> dict[str, float]:
    """Measure a generation on the stream's test samples.

    Args:
        opened: data, backbone and the frozen pass.
        servable: of the last generation; its input masks must not depend on the class.
        stream: the sessions.
        bound: fit a ridge, with all training samples, over all subspaces side by side.

    Returns:
        `true_session_a_t`: accuracy with the session given, own scores included;
        `base_true_session_a_t`: the same by the base head alone; `right_session_share`: how often the
        base head's best class is of the right session; `bound_a_t` where asked for.
    """
    last = len(stream.sessions) - 1
    test = stream.test(last)
    column_of = {class_id: column for column, class_id in enumerate(servable.class_ids)}
    truth = _columns(test, column_of)
    network = servable.network
    right = given = base_given = 0
    base = network.adapted(opened.cache.whole(test, range(len(test.labels))))
    for rows in torch.split(torch.arange(len(truth)), BATCH):
        part, true = base.rows(rows), truth[rows]
        scores, _ = network.base_scores(part.features[:, -len(network.mean) :])
        subspace = network.class_subspace[true]
        member = network.class_subspace[None, :] == subspace[:, None]
        assert part.tokens is not None
        own = network.subspace_scores(network.subspace_features(part.tokens, subspace, true))
        blended = scores + network.blend[subspace][:, None] * own
        right += int((network.class_subspace[scores.argmax(dim=1)] == subspace).sum())
        base_given += int((scores.where(member, -torch.inf).argmax(dim=1) == true).sum())
        given += int((blended.where(member, -torch.inf).argmax(dim=1) == true).sum())
    result = {
        "true_session_a_t": given / len(truth),
        "base_true_session_a_t": base_given / len(truth),
        "right_session_share": right / len(truth),
    }
    if bound:
        train = stream.everything(last).train
        fitted = network.adapted(opened.cache.whole(train, range(len(train.labels))))
        features, judged = _side_by_side(servable, fitted), _side_by_side(servable, base)
        standardiser = Standardiser.fit(features)
        features, judged = standardiser(features), standardiser(judged)
        targets = torch.nn.functional.one_hot(_columns(train, column_of)).double()
        weights = fit_ridge(features, targets, leave_one_out(features, targets)).float()
        found = ridge_scores(judged, weights).argmax(dim=1)
        result["bound_a_t"] = float((found == truth).double().mean())
    return result


def _side_by_side(servable: SGDSServable, base: BaseFeatures) -> Tensor:
    """Return the base features and those under every session's subspace, (N, D + S * D2)."""
    network = servable.network
    assert base.tokens is not None
    parts = [base.features[:, -len(network.mean) :]]
    for subspace in range(len(network.blend)):
        batches = []
        for tokens in torch.split(base.tokens, BATCH):
            index = torch.full((len(tokens),), subspace)
            batches.append(network.subspace_features(tokens, index, index))
        parts.append(torch.cat(batches))
    return torch.cat(parts, dim=1)


def _columns(samples: SampleSet, column_of: dict[int, int]) -> Tensor:
    return torch.tensor([column_of[label] for label in samples.labels.tolist()])
