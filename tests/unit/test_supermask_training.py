"""Training a session: what stays the same, what is learnt, and what an interruption changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from cl_engine.errors import Diverged
from cl_engine.supermask.architectures import Architecture
from cl_engine.supermask.network import MaskedNetwork, to_tensors
from cl_engine.supermask.settings import SupermaskSettings, layer_densities, overall_density
from cl_engine.supermask.training import EpochEnd, resumes, train_session
from tests.support.supermasks import blobs, perceptron, quick, trained, without_norms

METHODS = ("supsup", "exssnet", "ssnet")


def same(first: MaskedNetwork, second: MaskedNetwork) -> bool:
    """Compare two networks bit for bit."""
    one, other = to_tensors(first), to_tensors(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logits_over_time(
    build: Callable[[], Architecture], settings: SupermaskSettings, sessions: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Train sessions; return each one's logits right after it, and those after the last session."""
    network = MaskedNetwork.create(build, seed=0)
    right_after = []
    for session in range(sessions):
        network = trained(network, 1, settings)
        right_after.append(network.logits(session, blobs(session)[0]))
    return right_after, [network.logits(session, blobs(session)[0]) for session in range(sessions)]


@pytest.mark.parametrize("build", [perceptron, without_norms])
@pytest.mark.parametrize("kkt", ["off", "all"])
@pytest.mark.parametrize("method", ["supsup", "exssnet"])
def test_earlier_logits_are_bit_identical_after_later_sessions(
    build: Callable[[], Architecture], kkt: str, method: str
) -> None:
    """Zero forgetting with the task id given, to the last bit."""
    right_after, at_the_end = logits_over_time(build, quick(method=method, kkt=kkt), sessions=4)
    for before, after in zip(right_after, at_the_end, strict=True):
        assert torch.equal(before, after)


def test_without_exclusion_earlier_logits_change() -> None:
    """SSNeT retrains shared weights: every session but the last answers differently."""
    right_after, at_the_end = logits_over_time(perceptron, quick(method="ssnet"), sessions=3)
    unchanged = [torch.equal(before, after) for before, after in zip(right_after, at_the_end, strict=True)]
    assert unchanged == [False, False, True]


@pytest.mark.parametrize("method", METHODS)
def test_a_session_is_learnt(method: str) -> None:
    """Well separated classes are told apart under the session's subnetwork."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 2, quick(method=method, epochs=10))
    inputs, labels = blobs(1)
    assert (network.logits(1, inputs).argmax(dim=1) == labels).float().mean() > 0.9


def test_only_the_free_part_of_the_mask_is_trained() -> None:
    """Weights change under M_1 AND NOT M_0 and nowhere else; in SupSup none changes."""
    for method in ("exssnet", "supsup"):
        first = trained(MaskedNetwork.create(perceptron, seed=0), 1, quick(method=method))
        second = trained(first, 1, quick(method=method))
        changed = 0
        for name, weight in second.weights.items():
            moved = weight != first.weights[name]
            own = second.masks(1)[name] & ~first.masks(0)[name]
            assert not (moved & ~own).any()
            changed += int(moved.sum())
        assert (changed > 0) == (method == "exssnet")


def test_the_exclusive_share_is_measured() -> None:
    """Everything in the first session; in the second what a hand count gives."""
    network = MaskedNetwork.create(perceptron, seed=0)
    first = train_session(network, *blobs(0), quick(), seed=1)
    assert first.exclusive_share == 1
    second = train_session(first.network, *blobs(1), quick(), seed=1)
    masks = [second.network.masks(session) for session in range(2)]
    own = sum(int((masks[1][name] & ~masks[0][name]).sum()) for name in masks[0])
    assert second.exclusive_share == own / sum(int(mask.sum()) for mask in masks[1].values())


@pytest.mark.parametrize("allocation", ["uniform", "erdos_renyi"])
def test_masks_keep_the_density_asked_for(allocation: str) -> None:
    """Overall as set; every layer alike when uniform, the wide one sparser with Erdos-Renyi."""
    network = MaskedNetwork.create(without_norms, seed=0)
    settings = quick(allocation=allocation, density=0.1, epochs=2)
    network = trained(network, 1, settings)
    densities = layer_densities(network, settings)
    assert overall_density(network, densities) == pytest.approx(0.1)
    for name, mask in network.masks(0).items():
        assert mask.sum() == mask.numel() - int((1 - densities[name]) * mask.numel())
    if allocation == "erdos_renyi":
        assert densities["second.weight"] < 0.1 < densities["head.weight"]
    else:
        assert set(densities.values()) == {0.1}


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_everything(method: str) -> None:
    """Twice the same seed gives the same bits, another seed other masks."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 1, quick(method=method))
    once = train_session(network, *blobs(1), quick(method=method), seed=5).network
    again = train_session(network, *blobs(1), quick(method=method), seed=5).network
    other = train_session(network, *blobs(1), quick(method=method), seed=6).network
    assert same(once, again)
    assert not same(once, other)


def test_the_given_network_and_data_stay_as_they_are() -> None:
    """Training returns a new network; the old one, its scores included, is untouched."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 2, quick(kkt="all"))
    before = {name: tensor.clone() for name, tensor in to_tensors(network).items()}
    inputs, labels = blobs(2)
    train_session(network, inputs, labels, quick(kkt="all"), seed=1)
    after = to_tensors(network)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(inputs, blobs(2)[0])


@pytest.mark.parametrize("kkt", ["off", "always"])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_session_equals_an_uninterrupted_one(method: str, kkt: str) -> None:
    """From every epoch's checkpoint, through safetensors, the same bits come out."""
    settings = quick(method=method, kkt=kkt)
    network = trained(MaskedNetwork.create(perceptron, seed=0), 1, settings)
    saved: list[bytes] = []
    whole = train_session(
        network, *blobs(1), settings, seed=1, on_epoch=lambda end: saved.append(save(end.checkpoint()))
    )
    assert len(saved) == settings.epochs
    for checkpoint in saved:
        resumed = train_session(network, *blobs(1), settings, seed=1, resume=load(checkpoint))
        assert same(whole.network, resumed.network)
        assert whole.transfer == resumed.transfer


def test_resuming_leaves_the_checkpoint_as_it_is() -> None:
    """The same checkpoint can be resumed twice."""
    network = MaskedNetwork.create(perceptron, seed=0)
    saved: list[dict[str, Tensor]] = []
    train_session(network, *blobs(0), quick(), on_epoch=lambda end: saved.append(end.checkpoint()))
    before = {name: tensor.clone() for name, tensor in saved[1].items()}
    train_session(network, *blobs(0), quick(), resume=saved[1])
    assert all(torch.equal(before[name], saved[1][name]) for name in before)


def test_a_checkpoint_of_another_session_is_recognised() -> None:
    """Another seed, other settings, other labels or a further session: not resumed."""
    network = MaskedNetwork.create(perceptron, seed=0)
    inputs, labels = blobs(0)
    saved: list[dict[str, Tensor]] = []
    settings = quick()
    after = train_session(
        network, inputs, labels, settings, on_epoch=lambda end: saved.append(end.checkpoint())
    )
    assert resumes(saved[0], network, inputs, labels, settings, 0)
    assert not resumes(saved[0], network, inputs, labels, settings, 1)
    assert not resumes(saved[0], network, inputs, labels, quick(density=0.3), 0)
    assert not resumes(saved[0], network, inputs, labels.flip(0), settings, 0)
    assert not resumes(saved[0], after.network, inputs, labels, settings, 0)
    with pytest.raises(ValueError, match="resume belongs to another session"):
        train_session(network, inputs, labels, settings, seed=1, resume=saved[0])


def test_epochs_are_reported_with_a_preview() -> None:
    """Six epochs, half of them for weights; the last preview is the result."""
    ends: list[EpochEnd] = []
    previews: list[MaskedNetwork] = []

    def listen(end: EpochEnd) -> None:
        ends.append(end)
        previews.append(end.preview())

    network = MaskedNetwork.create(perceptron, seed=0)
    result = train_session(network, *blobs(0), quick(), on_epoch=listen)
    assert [(end.phase, end.epoch, end.epochs) for end in ends] == [
        *(("mask", epoch, 3) for epoch in (1, 2, 3)),
        *(("weights", epoch, 3) for epoch in (1, 2, 3)),
    ]
    assert same(previews[-1], result.network)
    assert not same(previews[-2], result.network)
    assert ends[-1].loss < ends[0].loss
    assert ends[-1].accuracy > ends[0].accuracy


def test_a_shortened_weight_phase_gives_its_epochs_to_the_mask() -> None:
    """The first session as ever; the second, with 40 % of the weights free, trains them for one epoch."""
    settings = quick(density=0.6, shorten_weight_phase=True)
    network = MaskedNetwork.create(perceptron, seed=0)
    for expected in (["mask"] * 3 + ["weights"] * 3, ["mask"] * 5 + ["weights"]):
        phases: list[str] = []
        session = len(network.sessions)
        network = train_session(
            network, *blobs(session), settings, on_epoch=lambda end, to=phases: to.append(end.phase)
        ).network
        assert phases == expected


def test_supsup_has_the_same_epochs_in_total() -> None:
    """All of them train masks."""
    assert (quick(method="supsup").mask_epochs, quick(method="supsup").weight_epochs) == (6, 0)
    assert (quick(weight_share=0.34).mask_epochs, quick(weight_share=0.34).weight_epochs) == (4, 2)


def test_training_in_bfloat16_keeps_the_promise() -> None:
    """Only the forward pass is rounded: weights stay float32 and earlier logits bit-identical."""
    right_after, at_the_end = logits_over_time(perceptron, quick(precision="bfloat16"), sessions=2)
    assert torch.equal(right_after[0], at_the_end[0])
    network = trained(MaskedNetwork.create(perceptron, seed=0), 1, quick(precision="bfloat16"))
    assert {weight.dtype for weight in network.weights.values()} == {torch.float32}


def test_tf32_changes_nothing_where_there_is_none() -> None:
    """On a CPU the option is accepted and the bits are those of float32."""
    network = MaskedNetwork.create(perceptron, seed=0)
    exact, rounded = (trained(network, 1, quick(precision=name)) for name in ("float32", "tf32"))
    assert same(exact, rounded)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    """The error names the phase and the rate to lower."""
    inputs, labels = blobs(0)
    inputs[0] = float("nan")
    with pytest.raises(Diverged, match=r"mask phase's loss is nan in epoch 1: lower mask_lr"):
        train_session(MaskedNetwork.create(without_norms, seed=0), inputs, labels, quick())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(95, dtype=torch.int64), "one per input"),
        (torch.zeros(96, dtype=torch.int32), "must be int64"),
        (torch.arange(96) % 4, r"from 0 to 3, the head has 3 outputs"),
        (torch.full((96,), -1), "from -1 to -1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Tensor, message: str) -> None:
    """Before anything is trained."""
    with pytest.raises(ValueError, match=message):
        train_session(MaskedNetwork.create(perceptron, seed=0), blobs(0)[0], labels, quick())


def test_a_batch_of_one_never_occurs() -> None:
    """65 samples in batches of at most 32: batch norm sees 22, 22 and 21, not 32, 32 and 1."""
    inputs, labels = blobs(0, samples=65)
    train_session(MaskedNetwork.create(perceptron, seed=0), inputs, labels, quick(epochs=2))
    with pytest.raises(ValueError, match="at least 2"):
        train_session(MaskedNetwork.create(perceptron, seed=0), inputs[:1], labels[:1], quick())


@pytest.mark.parametrize(
    "wrong",
    [{"density": 0}, {"kkt": "worst"}, {"mask_rate": 1}, {"allocation": "erdos_renyi", "density": 0.7}],
)
def test_settings_out_of_range_or_unknown_are_refused(wrong: dict[str, object]) -> None:
    """Pydantic's error is a ValueError."""
    with pytest.raises(ValueError):
        quick(**wrong)


def test_threshold_masks_are_for_supsup_alone() -> None:
    """A session keeps about half of each layer and says so; a method that counts free weights refuses."""
    network = MaskedNetwork.create(perceptron, seed=0)
    inputs, labels = blobs(0)
    trained_ = train_session(network, inputs, labels, quick(method="supsup", selection="threshold"), seed=1)
    for name, mask in trained_.network.masks(0).items():
        assert trained_.densities[name] == pytest.approx(mask.double().mean().item())
        assert 0.3 < trained_.densities[name] < 0.7
    with pytest.raises(ValueError, match="selection is 'threshold' but method is 'exssnet'"):
        quick(method="exssnet", selection="threshold")
