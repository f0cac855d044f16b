"""ExSSNeT and SupSup as learners over a frozen backbone: a stream without task ids."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cl_engine.errors import CapacityExhausted, CertificateViolation, UnsupportedGeneration
from cl_engine.generation import Generation, GenerationDirectory
from cl_engine.learners.base import Progress
from cl_engine.supermask.content import read_content
from cl_engine.supermask.learner import ExSSNeTLearner, SupermaskLearner, SupSupLearner
from cl_engine.supermask.learner_settings import ExSSNeTSettings, SupSupSettings
from tests.support.small_backbone import images, session_data, small_backbone

SMALL: dict[str, object] = {
    "feature_blocks": 2,
    "hidden": (32,),
    "outputs": 4,
    "epochs": 6,
    "density": 0.2,
    "batch_size": 16,
}
SESSIONS = (session_data(0, [0, 1, 2], []), session_data(1, [3, 4], [0, 1, 2]))


class Killed(Exception):
    """The session's process dies."""


def exssnet(**changes: object) -> ExSSNeTLearner:
    """Build a small ExSSNeT learner."""
    return ExSSNeTLearner(small_backbone(), ExSSNeTSettings.model_validate(SMALL | changes))


def supsup(**changes: object) -> SupSupLearner:
    """Build a small SupSup learner."""
    return SupSupLearner(small_backbone(), SupSupSettings.model_validate(SMALL | changes))


def taught(learner: SupermaskLearner) -> list[Generation]:
    """Run both sessions."""
    generations: list[Generation] = []
    for data in SESSIONS:
        generations.append(learner.learn(data, generations[-1] if generations else None))
    return generations


@pytest.mark.parametrize("routing", ["ridge", "prototype", "entropy", "all"])
@pytest.mark.parametrize("learner", [exssnet, supsup])
def test_classes_of_all_sessions_are_told_apart_without_a_task_id(learner, routing: str) -> None:
    """Unseen images of five classes from two sessions, however the session is inferred."""
    made = learner(routing=routing)
    servable = made.servable(taught(made)[-1])
    inputs, labels = images(range(5), 10, seed=77)
    prediction = servable.predict(inputs)
    assert prediction.scores.shape == (50, 5)
    assert torch.allclose(prediction.scores.sum(dim=1), torch.ones(50))
    assert torch.equal(prediction.class_ids, prediction.scores.argmax(dim=1))
    assert (prediction.class_ids == labels).float().mean() > 0.8


def test_the_subnetwork_takes_part_in_the_answer() -> None:
    """With trust 0 the ridge answers alone; with more, only classes of the routed session move."""
    generation = taught(exssnet(routing="ridge"))[-1]
    inputs, _ = images(range(5), 4, seed=78)
    ridge = exssnet().servable(replace(generation, settings=generation.settings | {"trust": 0.0}))
    both = exssnet().servable(generation)
    alone, together = ridge.predict(inputs).scores.log(), both.predict(inputs).scores.log()
    assert not torch.allclose(alone, together)
    for row, best in enumerate(alone.argmax(dim=1).tolist()):
        other = slice(3, 5) if best < 3 else slice(0, 3)
        shift = together[row, other] - alone[row, other]
        assert torch.allclose(shift, shift[:1].expand_as(shift), atol=1e-4)


@pytest.mark.parametrize("learner", [exssnet, supsup])
def test_the_seed_and_the_data_decide_the_digest(learner) -> None:
    """Twice the same gives the same generation, bit for bit."""
    first, second = taught(learner()), taught(learner())
    assert [g.digest for g in first] == [g.digest for g in second]
    assert learner().learn(replace(SESSIONS[0], seed=6), None).digest != first[0].digest


@pytest.mark.parametrize("killed_at", [1, 3, 4, 6])
def test_a_killed_session_resumes_to_the_same_digest(tmp_path: Path, killed_at: int) -> None:
    """Killed after an epoch of either phase, the next run continues and ends at the same generation."""
    learner = exssnet(kkt="best")
    first = learner.learn(SESSIONS[0], None)
    expected = learner.learn(SESSIONS[1], first).digest

    def kill(progress: Progress, seen: list[str]) -> None:
        if progress.phase in ("mask", "weights"):
            seen.append(progress.phase)
            if len(seen) == killed_at:
                raise Killed

    seen: list[str] = []
    with pytest.raises(Killed):
        learner.learn(SESSIONS[1], first, checkpoint=tmp_path, on_progress=lambda p: kill(p, seen))
    again: list[str] = []

    def count(progress: Progress) -> None:
        if progress.phase in ("mask", "weights"):
            again.append(progress.phase)

    resumed = learner.learn(SESSIONS[1], first, checkpoint=tmp_path, on_progress=count)
    assert resumed.digest == expected
    assert len(again) == 6 - killed_at


def test_progress_rises_to_the_end() -> None:
    """Every phase reports, and the share done never falls."""
    seen: list[Progress] = []
    exssnet().learn(SESSIONS[0], None, on_progress=seen.append)
    assert {"features", "mask", "weights", "head"} == {progress.phase for progress in seen}
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_a_generation_survives_the_disk(tmp_path: Path) -> None:
    """Written, read with what the next session needs, served and built on with the same result."""
    learner = exssnet(kkt="all")
    first = learner.learn(SESSIONS[0], None)
    directory = GenerationDirectory(tmp_path)
    directory.write(first)
    read = directory.load(first.digest, with_learner_state=True)
    inputs, _ = images(range(3), 4, seed=79)
    assert torch.equal(
        learner.servable(read).predict(inputs).scores, learner.servable(first).predict(inputs).scores
    )
    assert learner.learn(SESSIONS[1], read).digest == learner.learn(SESSIONS[1], first).digest
    # Serving needs neither scores nor statistics.
    directory.prune_learner_state(first.digest)
    pruned = directory.load(first.digest)
    assert torch.equal(
        learner.servable(pruned).predict(inputs).scores, learner.servable(first).predict(inputs).scores
    )
    with pytest.raises(UnsupportedGeneration, match="learner state is gone"):
        learner.learn(SESSIONS[1], pruned)


@pytest.mark.parametrize("learner", [exssnet, supsup])
def test_the_certificate_covers_every_session_and_earlier_logits_are_bit_identical(learner) -> None:
    """It is JSON, holds, and the first subnetwork's logits are the same bits after the second session."""
    made = learner()
    first, second = taught(made)
    certificate = json.loads(json.dumps(second.certificate))
    assert certificate["holds"] is True
    assert certificate["verified_subnetworks"] == 1
    assert certificate["sessions"][0] == first.certificate["sessions"][0]
    inputs = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
    before, after = (read_content(g, torch.device("cpu")).network.logits(0, inputs) for g in (first, second))
    assert torch.equal(before, after)


def test_a_previous_generation_that_breaks_its_promise_is_not_built_on() -> None:
    """A weight under the first mask was changed after the certificate was made."""
    learner = exssnet()
    first = learner.learn(SESSIONS[0], None)
    name = "network/weights/layers.0.weight"
    tampered = replace(first, tensors=dict(first.tensors) | {name: first.tensors[name] + 1})
    with pytest.raises(CertificateViolation, match="session 0: weights changed"):
        learner.learn(SESSIONS[1], tampered)


def test_a_session_of_one_class_takes_no_part_of_the_network() -> None:
    """There is nothing to tell apart; the class is answered by the ridge, and later sessions go on."""
    learner = exssnet()
    first = learner.learn(SESSIONS[0], None)
    second = learner.learn(session_data(1, [3], [0, 1, 2]), first)
    third = learner.learn(session_data(2, [4, 5], [0, 1, 2, 3]), second)
    content = read_content(third, torch.device("cpu"))
    assert content.class_subnetwork.tolist() == [0, 0, 0, -1, 1, 1]
    inputs, labels = images(range(6), 10, seed=80)
    assert (learner.servable(third).predict(inputs).class_ids == labels).float().mean() > 0.8


def test_the_evaluation_shows_capacity_and_what_was_borrowed() -> None:
    """For the console and the metrics; JSON."""
    second = taught(exssnet(kkt="always"))[-1]
    described = json.loads(json.dumps(second.evaluation))
    assert described["kkt"]["borrowed"] == [0]
    assert 0 < described["capacity"]["free_share"] < 0.81
    assert described["capacity"]["sessions_left"] > 0
    assert 0 <= described["exclusive_share"] < 1


def test_samples_unlike_every_class_are_more_unknown() -> None:
    """Images of a class never learnt have the higher unknown score."""
    learner = exssnet()
    servable = learner.servable(taught(learner)[-1])
    known = servable.predict(images(range(5), 8, seed=81)[0]).unknown
    strange = servable.predict(images([17, 18], 8, seed=81)[0]).unknown
    assert strange.mean() > known.mean() + 0.2


def test_more_classes_than_outputs_are_refused() -> None:
    """The error names the setting."""
    with pytest.raises(CapacityExhausted, match="brings 3 classes, outputs is 2"):
        exssnet(outputs=2).learn(SESSIONS[0], None)


def test_generations_of_another_method_or_backbone_are_refused() -> None:
    """To build on and to serve."""
    first = supsup().learn(SESSIONS[0], None)
    with pytest.raises(UnsupportedGeneration, match="of supsup on small"):
        exssnet().learn(SESSIONS[1], first)
    other = ExSSNeTLearner(small_backbone("other"))
    with pytest.raises(UnsupportedGeneration, match="belongs to backbone small"):
        other.servable(first)
    with pytest.raises(UnsupportedGeneration, match="method 'sgds', not one of exssnet, supsup"):
        exssnet().servable(replace(first, method="sgds"))


def test_a_generation_with_something_left_over_is_refused() -> None:
    """Full coverage: no tensor that nothing would read."""
    first = exssnet().learn(SESSIONS[0], None)
    extra = dict(first.tensors) | {"network/session/7/norms/x": torch.zeros(1)}
    with pytest.raises(UnsupportedGeneration, match="left over"):
        exssnet().servable(replace(first, tensors=extra))
    without = {name: tensor for name, tensor in first.tensors.items() if "coded_masks" not in name}
    with pytest.raises(UnsupportedGeneration, match="masks or norms are missing"):
        exssnet().servable(replace(first, tensors=without))


def test_few_resident_subnetworks_answer_the_same() -> None:
    """Unpacking on demand changes memory and time, not answers."""
    generation = taught(exssnet())[-1]
    inputs, _ = images(range(5), 4, seed=82)
    one = exssnet().servable(replace(generation, settings=generation.settings | {"resident": 1}))
    all_ = exssnet().servable(generation)
    assert torch.equal(one.predict(inputs).scores, all_.predict(inputs).scores)
    assert one.nbytes() < all_.nbytes()
