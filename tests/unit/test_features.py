"""The frozen backbone in pieces, its features, and what describes samples and machines."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn.functional import layer_norm

from cl_engine import measurement
from cl_engine.backbones.frozen import in_batches
from cl_engine.backbones.load import weights_digest
from cl_engine.backbones.precision import choose_device, choose_dtype, float32_products
from cl_engine.features import base_pass, extract, extraction_batch
from cl_engine.samples import TensorSamples
from tests.support.small_backbone import images, small_backbone

BACKBONE = small_backbone()
INPUTS, LABELS = images([0, 1], 5, seed=1)


@torch.no_grad()
def test_block_by_block_is_the_whole_network() -> None:
    """Entered and left at every block, the frozen network computes what timm's forward does."""
    tokens = BACKBONE.embed(INPUTS)
    for start in range(BACKBONE.depth):
        tokens = (
            BACKBONE.last(tokens, BACKBONE.depth - 1)
            if start == 2
            else next(BACKBONE.advance(tokens, start, start + 1))
        )
    expected = BACKBONE.model.forward_features(BACKBONE.normalise(INPUTS))
    torch.testing.assert_close(BACKBONE.model.norm(tokens), expected)


@torch.no_grad()
def test_an_adapter_is_added_beside_the_mlp() -> None:
    """What it returns for a block's normalised input is added to that block's output."""
    tokens, seen = BACKBONE.embed(INPUTS), []

    def ones(index: int, inputs: torch.Tensor) -> torch.Tensor:
        seen.append((index, inputs.mean(dim=-1).abs().max().item()))
        return torch.ones_like(inputs)

    plain = next(BACKBONE.advance(tokens, 1, 2))
    torch.testing.assert_close(next(BACKBONE.advance(tokens, 1, 2, ones)), plain + 1)
    assert seen[0][0] == 1
    assert seen[0][1] < 1e-5, "the input is layer-normed"


@torch.no_grad()
def test_layer_features_are_the_class_token_and_the_patch_mean() -> None:
    """Side by side for each of the last blocks, in their order."""
    found = base_pass(BACKBONE, INPUTS, 2, 1)
    outputs = list(BACKBONE.advance(BACKBONE.embed(INPUTS), 0, 3))
    normed = [layer_norm(t, (16,)) for t in outputs[1:]]
    expected = torch.cat([part for t in normed for part in (t[:, 0], t[:, 1:].mean(dim=1))], dim=1)
    torch.testing.assert_close(found.features, expected)
    assert found.tokens is not None
    torch.testing.assert_close(found.tokens, outputs[0])
    torch.testing.assert_close(BACKBONE.features(INPUTS), expected[:, 32:])


def test_extraction_reads_chosen_samples_in_batches() -> None:
    """Any number of samples, in any order, and it says how far it is."""
    inputs, labels = images([0, 1], 20, seed=1)
    samples, finished = TensorSamples(inputs, labels), []
    everything = extract(BACKBONE, samples, 2, 0, on_batch=finished.append)
    assert finished == [32, 40]
    assert everything.features.shape == (40, 64)
    assert everything.tokens is not None
    assert everything.tokens.shape == (40, 5, 16)
    chosen = extract(BACKBONE, samples, 2, indices=[39, 0])
    torch.testing.assert_close(chosen.features, everything.features[[39, 0]])
    assert chosen.tokens is None
    assert extract(BACKBONE, samples, 2, 0, indices=[]).features.shape == (0, 64)


def test_a_batch_that_does_not_fit_is_halved() -> None:
    """Until it fits; a single item that does not fit is the caller's problem."""
    tried = []

    def compute(start: int, stop: int) -> list[int]:
        tried.append(stop - start)
        if stop - start > 3:
            raise torch.OutOfMemoryError("too much")
        return list(range(start, stop))

    parts = in_batches(compute, 10, 8, torch.device("cpu"))
    assert [i for part in parts for i in part] == list(range(10))
    assert tried[:3] == [8, 4, 2]

    def never(start: int, stop: int) -> None:
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(torch.OutOfMemoryError):
        in_batches(never, 2, 2, torch.device("cpu"))


def test_images_of_another_shape_or_type_are_refused() -> None:
    """The error gives what was expected and what came."""
    for wrong in (INPUTS.float(), INPUTS[:, :, :8], INPUTS[0]):
        with pytest.raises(ValueError, match=r"expected uint8 images \(B, 3, 16, 16\), got"):
            BACKBONE.features(wrong)


def test_the_weights_name_the_backbone() -> None:
    """Same weights, same digest, in whatever order; one other number, another one."""
    state = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(3)}
    digest = weights_digest(state)
    assert weights_digest({"a": torch.tensor(3), "b": torch.tensor([1.0, 2.0])}) == digest
    assert weights_digest(state | {"a": torch.tensor(4)}) != digest
    assert weights_digest(state | {"b": torch.tensor([[1.0, 2.0]])}) != digest
    assert weights_digest(small_backbone().model.state_dict()) == weights_digest(BACKBONE.model.state_dict())


def test_automatic_choices_follow_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without native bfloat16 gets float32, one with it bfloat16; a GPU is taken where there is one."""
    cpu = torch.device("cpu")
    for avx512, amx, expected in (
        (False, False, torch.float32),
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda found=avx512: found)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda found=amx: found)
        assert choose_dtype("auto", cpu) == expected
        assert choose_dtype("float32", cpu) == torch.float32
    for native in (False, True):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, n=native: n)
        assert choose_dtype("auto", torch.device("cuda")) == (torch.bfloat16 if native else torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ValueError, match="no CUDA device that torch can use"):
        choose_device("cuda:1")


def test_larger_batches_keep_a_gpu_busy() -> None:
    """A CPU is busy with few."""
    assert extraction_batch(torch.device("cuda")) > extraction_batch(torch.device("cpu")) == 32


def test_the_choice_of_tf32_is_put_back() -> None:
    """Also after an error: what comes next in the process computes as before."""

    def chosen() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    def fail(tf32: bool) -> None:
        with float32_products(tf32=tf32):
            assert chosen() == (tf32, tf32)
            raise RuntimeError("training")

    before = chosen()
    for tf32 in (True, False):
        with pytest.raises(RuntimeError, match="training"):
            fail(tf32)
        assert chosen() == before


def test_wrong_names_of_devices_and_formats_are_refused() -> None:
    """The error lists what there is."""
    with pytest.raises(ValueError, match="device 'abacus' must be 'auto', 'cpu'"):
        choose_device("abacus")
    with pytest.raises(ValueError, match="dtype 'float8' must be 'auto', 'float32' or 'bfloat16'"):
        choose_dtype("float8", torch.device("cpu"))


def test_samples_have_a_label_and_an_id_each() -> None:
    """Ids are numbers where none are given; other lengths are refused."""
    samples = TensorSamples(INPUTS, LABELS)
    assert list(samples.ids) == [str(i) for i in range(10)]
    assert torch.equal(samples.load([3, 1]), INPUTS[[3, 1]])
    with pytest.raises(ValueError, match=r"inputs \(10\) and labels \(9\)"):
        TensorSamples(INPUTS, LABELS[:9])
    with pytest.raises(ValueError, match=r"ids \(1\) and labels \(10\)"):
        TensorSamples(INPUTS, LABELS, ["only"])


def test_a_measurement_says_where_it_was_made() -> None:
    """Cores this process may use, memory, processor, and versions of what is installed."""
    machine = measurement.machine()
    assert machine["cores"] == len(os.sched_getaffinity(0))
    assert isinstance(machine["memory_bytes"], int)
    assert machine["memory_bytes"] > 2**28
    assert machine["processor"]
    assert measurement.versions()["torch"] == torch.__version__.partition("+")[0]
