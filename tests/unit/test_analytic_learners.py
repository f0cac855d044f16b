"""The analytic baselines: ridge, RanPAC and streaming LDA over frozen features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cl_engine.errors import UnsupportedGeneration
from cl_engine.generation import Generation, GenerationDirectory
from cl_engine.heads import RidgeStatistics
from cl_engine.heads.lda import lda_weights
from cl_engine.heads.ridge import ridge_scores
from cl_engine.heads.statistics import read_statistics
from cl_engine.learners import create, servable
from cl_engine.learners.base import Progress
from cl_engine.samples import SessionData, TensorSamples
from tests.support.small_backbone import images, session_data, small_backbone

OPTIONS: dict[str, dict[str, object]] = {
    "ridge": {"feature_blocks": 2},
    "ranpac": {"feature_blocks": 2, "projection": 96},
    "slda": {"feature_blocks": 2},
}
METHODS = tuple(OPTIONS)
SESSIONS = (session_data(0, [0, 1, 2], []), session_data(1, [3, 4], [0, 1, 2]))


def taught(method: str, sessions: tuple[SessionData, ...] = SESSIONS) -> list[Generation]:
    """Run the sessions."""
    learner, made = create(method, small_backbone(), OPTIONS[method]), []
    for data in sessions:
        made.append(learner.learn(data, made[-1] if made else None))
    return made


@pytest.mark.parametrize("method", METHODS)
def test_classes_of_all_sessions_are_told_apart(method: str) -> None:
    """Unseen images of both sessions' classes are recognised, and probabilities are probabilities."""
    ready = servable(small_backbone(), taught(method)[-1])
    inputs, labels = images(range(5), 10, seed=77)
    prediction = ready.predict(inputs)
    assert (prediction.class_ids == labels).float().mean() > 0.8
    torch.testing.assert_close(prediction.scores.sum(dim=1), torch.ones(50))
    assert torch.equal(prediction.class_ids, prediction.scores.argmax(dim=1))
    strange = torch.randint(0, 256, inputs.shape, generator=torch.Generator().manual_seed(1))
    assert ready.predict(strange.to(torch.uint8)).unknown.mean() > prediction.unknown.mean() + 0.2


@pytest.mark.parametrize("method", METHODS)
def test_two_sessions_give_the_sums_of_one(method: str) -> None:
    """Other classes later change nothing: the sums are those of all samples at once, standardised alike."""
    first, second = taught(method)
    learner = create(method, small_backbone(), OPTIONS[method])
    # The same standardisation: a session that adds no class to the first, then everything at once.
    both = TensorSamples(
        torch.cat([data.train.load(range(len(data.train.ids))) for data in SESSIONS]),
        torch.cat([data.train.labels for data in SESSIONS]),
        [i for data in SESSIONS for i in data.train.ids],
    )
    alone = taught(method, (SESSIONS[0],))[0]
    blank = {name: torch.zeros_like(t) for name, t in alone.learner_state.items()}
    empty = replace(alone, learner_state=blank)
    at_once = learner.learn(replace(SESSIONS[1], train=both), empty)
    found, expected = (read_statistics(g, torch.device("cpu")) for g in (second, at_once))
    torch.testing.assert_close(found.ridge.gram, expected.ridge.gram, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.ridge.cross, expected.ridge.cross, atol=1e-6, rtol=0)
    assert torch.equal(found.ridge.count, expected.ridge.count)
    torch.testing.assert_close(found.prototypes.total, expected.prototypes.total, atol=1e-6, rtol=0)
    assert torch.equal(first.tensors["mean"], second.tensors["mean"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("last", [1e-2, 1e7])
def test_the_head_is_that_of_the_sums_whatever_the_last_sessions_strength_was(
    method: str, last: float
) -> None:
    """One that slid down over easy sessions, as earlier releases stored it, is not begun at."""
    first, second = taught(method)
    strength = torch.tensor([last], dtype=torch.float64)
    slid = replace(first, learner_state=dict(first.learner_state) | {"strength": strength})
    again = create(method, small_backbone(), OPTIONS[method]).learn(SESSIONS[1], slid)
    assert again.evaluation["strength"] == second.evaluation["strength"]
    assert torch.equal(again.tensors["weights"], second.tensors["weights"])


@pytest.mark.parametrize("method", METHODS)
def test_the_same_session_gives_the_same_digest_and_survives_the_disk(method: str, tmp_path: Path) -> None:
    """Twice the same is the same, bit for bit, and what is read again answers the same."""
    first, again = taught(method), taught(method)
    assert [g.digest for g in first] == [g.digest for g in again]
    folder = GenerationDirectory(tmp_path)
    digest = folder.write(first[-1])
    inputs, _ = images(range(5), 3, seed=7)
    backbone = small_backbone()
    here = servable(backbone, first[-1]).predict(inputs).scores
    assert torch.equal(servable(backbone, folder.load(digest)).predict(inputs).scores, here)
    # A third session can be built on what was read.
    third = session_data(2, [5], range(5))
    built = create(method, backbone, OPTIONS[method]).learn(
        third, folder.load(digest, with_learner_state=True)
    )
    assert built.class_ids == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_built_on_is_refused(method: str) -> None:
    """Another backbone, a pruned learner state, and a setting that earlier sessions answer with."""
    first = taught(method, (SESSIONS[0],))[0]
    with pytest.raises(UnsupportedGeneration, match="is not one of"):
        create(method, small_backbone("other"), OPTIONS[method]).learn(SESSIONS[1], first)
    with pytest.raises(UnsupportedGeneration, match="learner state is gone"):
        create(method, small_backbone(), OPTIONS[method]).learn(SESSIONS[1], replace(first, learner_state={}))
    with pytest.raises(ValueError, match="feature_blocks is 1"):
        create(method, small_backbone(), OPTIONS[method] | {"feature_blocks": 1}).learn(SESSIONS[1], first)


def test_progress_rises_to_the_end() -> None:
    """The frozen pass and the head report, and the share done never falls."""
    seen: list[Progress] = []
    create("ridge", small_backbone(), OPTIONS["ridge"]).learn(SESSIONS[0], None, on_progress=seen.append)
    assert [p.phase for p in seen][-2:] == ["features", "head"]
    shares = [p.done for p in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_projection_is_drawn_again_and_not_stored() -> None:
    """No tensor of its size is kept; one that would be drawn differently is noticed."""
    generation = taught("ranpac")[-1]
    dimensions = len(generation.tensors["mean"])
    assert all(t.numel() < dimensions * 96 for t in generation.tensors.values())
    other = replace(generation, settings=generation.settings | {"projection_seed": 1})
    with pytest.raises(UnsupportedGeneration, match="draws another projection from seed 1"):
        servable(small_backbone(), other)


def test_discriminants_against_the_definition() -> None:
    """Gaussian log-densities of one shared covariance, computed sample by sample."""
    random = torch.Generator().manual_seed(2)
    columns = torch.arange(3).repeat(20)
    features = torch.randn(60, 4, generator=random) + torch.randn(3, 4, generator=random)[columns] * 2
    folds = torch.arange(60) % 2
    weights = lda_weights(RidgeStatistics.empty(4).updated(features, columns, folds, 3), 0.3)
    x = features.double().numpy()
    means = np.stack([x[columns.numpy() == c].mean(axis=0) for c in range(3)])
    within = x - means[columns.numpy()]
    covariance = within.T @ within / 60
    shrunk = 0.7 * covariance + 0.3 * np.trace(covariance) / 4 * np.eye(4)
    gaps = x[:, None, :] - means
    distance = np.einsum("ncd,de,nce->nc", gaps, np.linalg.inv(shrunk), gaps)
    scores = ridge_scores(features.double(), weights).numpy() * 4
    np.testing.assert_allclose(scores - scores[:, :1], -0.5 * (distance - distance[:, :1]), atol=1e-8)


def test_a_covariance_without_an_inverse_is_named() -> None:
    """Two samples a class in nine dimensions need shrinkage; a class without a sample has no mean."""
    features = torch.randn(4, 9, generator=torch.Generator().manual_seed(3))
    few = RidgeStatistics.empty(9).updated(features, torch.tensor([0, 0, 1, 1]), torch.zeros(4), 2)
    with pytest.raises(ValueError, match=r"4 samples in 9 dimensions is singular at shrinkage 0\.0"):
        lda_weights(few, 0.0)
    assert lda_weights(few, 0.1).isfinite().all()
    with pytest.raises(ValueError, match="every class needs a sample"):
        lda_weights(few.updated(features[:0], torch.zeros(0, dtype=torch.int64), torch.zeros(0), 3), 0.1)
