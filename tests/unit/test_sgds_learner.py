"""SGDS sessions end to end, on a small random backbone: mechanics, never accuracy figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cl_engine.cached_features import CachedExtract
from cl_engine.errors import CapacityExhausted, UnsupportedGeneration
from cl_engine.heads.ridge import ridge_scores
from cl_engine.learners.base import Progress
from cl_engine.samples import SessionData, TensorSamples
from cl_engine.sgds import SGDSLearner, SGDSSettings
from cl_engine.sgds.answer import AnswerNetwork
from cl_engine.sgds.content import Content, read_content
from tests.support.sgds_sessions import QUICK, learn_all, quick_learner, stream
from tests.support.small_backbone import images, small_backbone

BACKBONE = small_backbone()
THREE = stream([0, 1], [2, 3], [4, 5])


def without(data: SessionData, classes: tuple[int, ...]) -> SessionData:
    """Replace the new classes and keep the samples."""
    return replace(data, new_classes=classes)


def test_the_same_seed_gives_the_same_generations() -> None:
    """Digest by digest, in another learner object; another seed gives another one."""
    first = [g.digest for g in learn_all(quick_learner(BACKBONE), THREE)]
    again = [g.digest for g in learn_all(quick_learner(BACKBONE), THREE)]
    assert first == again
    assert len(set(first)) == 3
    other = quick_learner(BACKBONE).learn(replace(THREE[0], seed=6), None)
    assert other.digest != first[0]


def test_a_generation_says_what_it_is() -> None:
    """Class table, parents, certificates and strategy of three sessions."""
    one, two, three = learn_all(quick_learner(BACKBONE), THREE)
    assert [(e.id, e.label, e.session) for e in three.classes] == [
        (c, f"class {c}", c // 2) for c in range(6)
    ]
    assert (one.parent, two.parent, three.parent) == (None, one.digest, two.digest)
    assert three.certificate["holds"] is True
    assert three.certificate["verified_subspaces"] == ["0", "1"]
    assert three.certificate["digests"].items() >= two.certificate["digests"].items()
    assert one.evaluation["strategy"]["choices"] == {"0": "allocate", "1": "allocate"}
    assert set(three.evaluation["strategy"]["choices"]) == {"4", "5"}


def test_classes_it_can_tell_apart_are_told_apart() -> None:
    """Noisy copies of one pattern a class: the holdout of all six is right after three sessions."""
    learner = quick_learner(BACKBONE)
    servable = learner.servable(learn_all(learner, THREE)[-1])
    holdout = THREE[-1].holdout
    prediction = servable.predict(holdout.load(range(len(holdout.labels))))
    assert (prediction.class_ids == holdout.labels).double().mean() == 1
    torch.testing.assert_close(prediction.scores.sum(dim=1), torch.ones(len(holdout.labels)))
    assert ((prediction.unknown >= 0) & (prediction.unknown <= 1)).all()
    assert servable.class_ids == tuple(range(6))
    assert servable.labels[4] == "class 4"
    assert servable.nbytes() > 0


def subspace_answers(content: Content, samples: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return features and own scores of samples under their own class's subspace."""
    network = AnswerNetwork(BACKBONE, SGDSSettings(**QUICK), content)
    with torch.inference_mode():
        base = network.base_features(samples)
        assert base.tokens is not None
        subspace = content.class_subspace[columns]
        features = network.subspace_features(base.tokens, subspace, columns)
        return features, network.subspace_scores(features)


def test_an_earlier_session_s_own_answers_never_drift() -> None:
    """Its adapted features, and its own head's scores on them, are bit-identical after every later session.

    The served scores come out of one product with all classes' columns, whose summation order may depend
    on how many there are: they are equal up to that rounding.
    """
    generations = learn_all(quick_learner(BACKBONE), stream([0, 1], [2, 3], [4, 5], [6], [7, 8, 9]))
    samples, columns = images([0, 1, 2, 3], 6, seed=1)
    earlier = read_content(generations[1])
    features, scores = subspace_answers(earlier, samples, columns)
    for later in generations[2:]:
        content = read_content(later)
        now_features, now_scores = subspace_answers(content, samples, columns)
        assert torch.equal(now_features, features)
        own, now_own = (c.subspace_head[:, :4].contiguous() for c in (earlier, content))
        assert torch.equal(ridge_scores(now_features, now_own), ridge_scores(features, own))
        torch.testing.assert_close(now_scores[:, :4], scores, atol=1e-6, rtol=0)


class Interrupted(Exception):
    """Raised by a listener."""


def test_a_session_resumes_where_it_was_interrupted(tmp_path: Path) -> None:
    """Whichever epoch the process ends in, the resumed session gives the digest of an undisturbed one."""
    learner = quick_learner(BACKBONE)
    previous = learner.learn(THREE[0], None)
    expected = learner.learn(THREE[1], previous).digest
    for killed_in in range(3):
        epochs: list[float] = []

        def interrupt(progress: Progress, killed_in: int = killed_in) -> None:
            if progress.detail.get("epoch") == killed_in and "loss" not in progress.detail:
                raise Interrupted

        def listen(progress: Progress, epochs: list[float] = epochs) -> None:
            if "loss" in progress.detail:
                epochs.append(progress.detail["epoch"])

        directory = tmp_path / str(killed_in)
        with pytest.raises(Interrupted):
            learner.learn(THREE[1], previous, checkpoint=directory, on_progress=interrupt)
        resumed = learner.learn(THREE[1], previous, checkpoint=directory, on_progress=listen)
        assert resumed.digest == expected
        assert epochs == list(range(killed_in + 1, 4)), "the finished epochs were not run again"


def test_another_session_s_checkpoint_is_ignored(tmp_path: Path) -> None:
    """Other settings, another seed or other labels: the session starts at its first epoch."""
    learner = quick_learner(BACKBONE)
    previous = learner.learn(THREE[0], None)
    learner.learn(THREE[1], previous, checkpoint=tmp_path)
    train = THREE[1].train
    swapped = TensorSamples(train.load(range(len(train.labels))), 5 - train.labels, train.ids)
    for other, data in (
        (quick_learner(BACKBONE, learning_rate=0.02), THREE[1]),
        (learner, replace(THREE[1], seed=8)),
        (learner, replace(THREE[1], train=swapped)),
    ):
        clean = other.learn(data, previous).digest
        assert other.learn(data, previous, checkpoint=tmp_path).digest == clean
        learner.learn(THREE[1], previous, checkpoint=tmp_path)


def test_progress_goes_from_nothing_to_everything() -> None:
    """It never falls, it ends at 1, and the phases come in order."""
    seen: list[Progress] = []
    quick_learner(BACKBONE).learn(THREE[0], None, on_progress=seen.append)
    done = [p.done for p in seen]
    assert done == sorted(done)
    assert done[-1] == 1.0
    assert list(dict.fromkeys(p.phase for p in seen)) == ["features", "explore", "compact", "head"]


def refresh(session: int, classes: list[int]) -> SessionData:
    """Put together a session with more samples of known classes and no new class."""
    inputs, labels = images(classes, 10, seed=77)
    held, held_labels = images(classes, 4, seed=78)
    return SessionData(
        session=session,
        new_classes=(),
        train=TensorSamples(inputs, labels, [f"more-{i}" for i in range(len(labels))]),
        holdout=TensorSamples(held, held_labels),
        class_labels={c: f"class {c}" for c in classes},
    )


def test_a_refresh_trains_no_weight() -> None:
    """New samples of known classes go into the exact statistics; every subspace stays as it was."""
    learner = quick_learner(BACKBONE)
    before = learn_all(learner, THREE[:2])[-1]
    after = learner.learn(refresh(2, [0, 3]), before)
    assert after.classes == before.classes
    assert torch.equal(after.tensors["down"], before.tensors["down"])
    assert not torch.equal(after.tensors["base_weights"], before.tensors["base_weights"])
    assert after.certificate["verified_subspaces"] == ["0", "1"]
    grown = after.learner_state["ridge.count"].sum() - before.learner_state["ridge.count"].sum()
    assert grown == 20
    assert learner.learn(stream([0, 1], [2, 3], [4])[2], after).classes[-1].id == 4


def test_the_base_head_is_that_of_learning_all_at_once() -> None:
    """Session by session, the ridge statistics are those of one session with every sample."""
    scaled = {"standardise": "first_session"}
    apart = learn_all(quick_learner(BACKBONE, **scaled), THREE)[-1]
    sets = [data.train for data in THREE]
    together = replace(
        THREE[2],
        session=0,
        new_classes=tuple(range(6)),
        train=TensorSamples(
            torch.cat([s.load(range(len(s.labels))) for s in sets]),
            torch.cat([s.labels for s in sets]),
            [i for s in sets for i in s.ids],
        ),
    )
    # The standardisation is the first session's, so it is given to the other run by hand.
    joint = quick_learner(BACKBONE, **scaled).learn(together, None)
    mean, scale = (apart.tensors[n].double() - joint.tensors[n].double() for n in ("mean", "scale"))
    assert mean.abs().max() > 0, "else the comparison below would need no correction"
    assert scale.abs().max() > 0
    assert torch.equal(apart.learner_state["ridge.count"], joint.learner_state["ridge.count"])
    size = len(joint.tensors["mean"]) + 1
    change = torch.eye(size, dtype=torch.float64)
    ratio = joint.tensors["scale"].double() / apart.tensors["scale"].double()
    change[: size - 1, : size - 1] = ratio.diag()
    change[: size - 1, -1] = -mean / apart.tensors["scale"].double()
    torch.testing.assert_close(
        apart.learner_state["ridge.cross"],
        change @ joint.learner_state["ridge.cross"],
        atol=1e-3,
        rtol=1e-3,
    )


@pytest.mark.parametrize("per_class", [1, 2, 24])
def test_a_session_of_one_class(per_class: int) -> None:
    """Also of a single sample, which may fall to validation: it is learnt and answers."""
    learner = quick_learner(BACKBONE)
    sessions = stream([0, 1], [2], per_class=per_class)
    generation = learn_all(learner, sessions)[-1]
    assert generation.tensors["blend"][-1] == 0, "one class has no order to change"
    assert all(torch.isfinite(t).all() for t in generation.tensors.values())
    inputs, _ = images([2], 3, seed=5)
    prediction = learner.servable(generation).predict(inputs)
    assert torch.isfinite(prediction.scores).all()
    assert prediction.class_ids.tolist() == [2, 2, 2]


def test_capacity_is_refused_before_training() -> None:
    """Two sessions of two units fit max_units 5, a third does not; a refresh still does."""
    learner = quick_learner(BACKBONE, max_units=5)
    two = learn_all(learner, THREE[:2])[-1]
    with pytest.raises(CapacityExhausted, match=r"4 of max_units 5 .* needs 2: raise max_units"):
        learner.learn(THREE[2], two)
    assert learner.learn(refresh(2, [0]), two).session == 2


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((0, 2, 3), r"new_classes \[0\] are in the previous generation"),
        ((2, 3, 9), r"new_classes \[9\] have no training sample"),
        ((2,), r"training samples of classes \[3\]: neither known nor in new_classes"),
        ((3, 2), r"new_classes \[3, 2\] must be ascending, each once"),
        ((2, 2, 3), r"must be ascending, each once"),
    ],
)
def test_a_wrong_class_table_is_refused(classes: tuple[int, ...], message: str) -> None:
    """The error names the classes and what is wrong with them."""
    learner = quick_learner(BACKBONE)
    previous = learner.learn(THREE[0], None)
    with pytest.raises(ValueError, match=message):
        learner.learn(without(THREE[1], classes), previous)


def test_a_class_needs_a_label_and_a_stream_a_class() -> None:
    """Both are caller's mistakes."""
    learner = quick_learner(BACKBONE)
    with pytest.raises(ValueError, match=r"new_classes \[1\] are missing from class_labels"):
        learner.learn(replace(THREE[0], class_labels={0: "zero"}), None)
    empty = TensorSamples(torch.zeros(0, 3, 16, 16, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="the first session needs a class"):
        learner.learn(replace(THREE[0], new_classes=(), train=empty), None)


def test_a_generation_belongs_to_its_backbone_and_method() -> None:
    """It is neither served nor built on elsewhere."""
    generation = quick_learner(BACKBONE).learn(THREE[0], None)
    stranger = quick_learner(small_backbone("stranger"))
    with pytest.raises(UnsupportedGeneration, match="stranger"):
        stranger.learn(THREE[1], generation)
    with pytest.raises(UnsupportedGeneration, match="stranger"):
        stranger.servable(generation)
    with pytest.raises(UnsupportedGeneration, match="ncm"):
        quick_learner(BACKBONE).servable(replace(generation, method="ncm"))
    with pytest.raises(UnsupportedGeneration, match="learner state is gone"):
        quick_learner(BACKBONE).learn(THREE[1], replace(generation, learner_state={}))
    extra = dict(generation.tensors) | {"extra": torch.zeros(1)}
    with pytest.raises(UnsupportedGeneration, match="extra"):
        quick_learner(BACKBONE).servable(replace(generation, tensors=extra))
    units = dict(generation.masks) | {"units": ~generation.masks["units"]}
    with pytest.raises(UnsupportedGeneration, match="unit masks"):
        quick_learner(BACKBONE).servable(replace(generation, masks=units))


def test_cached_features_change_nothing() -> None:
    """The same digests from features that were computed once."""
    cache = CachedExtract(BACKBONE, feature_blocks=3, continue_from=1)
    cached = SGDSLearner(BACKBONE, SGDSSettings(**QUICK), cache)
    plain = quick_learner(BACKBONE)
    # A holdout has ids of its own: the cache goes by id.
    sessions = [
        replace(d, holdout=replace(d.holdout, ids=[f"held-{i}" for i in range(len(d.holdout.labels))]))
        for d in THREE[:1]
    ]
    assert learn_all(cached, sessions)[-1].digest == learn_all(plain, sessions)[-1].digest
    with pytest.raises(ValueError, match="the cache continues from block 1"):
        cache(BACKBONE, THREE[0].train, 1, 2)
    with pytest.raises(ValueError, match="the cache holds 3 blocks"):
        cache(small_backbone("other"), THREE[0].train, 1)


def test_without_standardising_the_statistics_do_not_depend_on_the_sessions() -> None:
    """By default no session's statistics scale another's features: apart and together give the same sums."""
    apart = learn_all(quick_learner(BACKBONE), THREE)[-1]
    sets = [data.train for data in THREE]
    everything = TensorSamples(
        torch.cat([s.load(range(len(s.labels))) for s in sets]),
        torch.cat([s.labels for s in sets]),
        [i for s in sets for i in s.ids],
    )
    together = replace(THREE[2], session=0, new_classes=tuple(range(6)), train=everything)
    joint = quick_learner(BACKBONE).learn(together, None)
    for name in ("ridge.gram", "ridge.cross"):
        torch.testing.assert_close(apart.learner_state[name], joint.learner_state[name], atol=1e-3, rtol=1e-5)
