"""Entropy coding of masks: exact, near its bound, and safe against damage."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_engine.masks.coding import decode, encode, entropy_bytes


def random_mask(entries: int, density: float, seed: int = 0) -> torch.Tensor:
    """Draw a mask with exactly this share of entries kept."""
    order = torch.randperm(entries, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(entries, dtype=torch.bool)
    mask[order[: round(density * entries)]] = True
    return mask


MASKS = st.lists(
    st.lists(st.booleans(), max_size=80) | st.tuples(st.integers(0, 3000), st.floats(0, 1)), max_size=4
)


@given(MASKS)
def test_coding_is_exact_and_repeatable(drawn: list[list[bool] | tuple[int, float]]) -> None:
    """Any masks, empty and full ones among them, come back, and the same masks give the same bytes."""
    masks = {
        str(i): torch.tensor(mask, dtype=torch.bool) if isinstance(mask, list) else random_mask(*mask)
        for i, mask in enumerate(drawn)
    }
    coded = encode(masks)
    found = decode(coded, {name: mask.shape for name, mask in masks.items()})
    assert list(found) == list(masks)
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())
    assert torch.equal(coded, encode({name: mask.clone() for name, mask in masks.items()}))


def test_a_small_mask_by_hand() -> None:
    """Kept are 3 and 4 of 16: gaps 3 and 0; no remainder: bits 1110 0 in one byte, 0b00111 = 7."""
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 3] = mask[1, 0] = True
    header = [0, 2, 0, 0, 0, 1, 0, 0, 0]
    assert encode({"layer": mask}).tolist() == [*header, 0b00111]


def test_more_than_half_is_coded_by_what_is_dropped() -> None:
    """The complement of a sparse mask takes the bytes of the sparse mask."""
    mask = random_mask(10_000, 0.03)
    sparse, dense = encode({"m": mask}), encode({"m": ~mask})
    assert len(sparse) == len(dense)
    assert torch.equal(decode(dense, {"m": mask.shape})["m"], ~mask)


@pytest.mark.parametrize("density", [0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.38, 0.45, 0.5, 0.7, 0.95])
def test_the_size_is_near_the_entropy(density: float) -> None:
    """At any density a layer of 100,000 weights takes at most 1.06 times n H(p) bits."""
    masks = {"layer": random_mask(100_000, density)}
    assert len(encode(masks)) <= 1.06 * entropy_bytes(masks)


def test_the_entropy_of_a_half_is_a_bit_an_entry() -> None:
    """H(1/2) = 1 and H(0) = 0: 800 entries take 100 bytes, an empty mask none."""
    assert entropy_bytes({"half": random_mask(800, 0.5), "none": random_mask(50, 0)}) == pytest.approx(100)


def test_decoding_is_fast() -> None:
    """A hundred masks of 270,000 weights are decoded well within a second each ten."""
    coded = encode({"layer": random_mask(270_000, 0.1)})
    started = time.process_time()
    for _ in range(100):
        decode(coded, {"layer": (270_000,)})
    assert time.process_time() - started < 10


@given(st.data())
def test_damage_is_an_error_or_another_mask(data: st.DataObject) -> None:
    """Whatever is done to the bytes, decoding raises ValueError or gives masks of the asked shape."""
    coded = bytearray(encode({"a": random_mask(300, 0.1), "b": random_mask(40, 0.5)}).numpy().tobytes())
    for _ in range(data.draw(st.integers(1, 3))):
        coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    coded = coded[: data.draw(st.integers(1, len(coded)))]
    damaged = torch.frombuffer(coded, dtype=torch.uint8)
    try:
        found = decode(damaged, {"a": (300,), "b": (40,)})
    except ValueError:
        return
    assert (found["a"].shape, found["b"].shape) == ((300,), (40,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda coded: coded[:5], "header is cut short"),
        (lambda coded: coded[:-1], "is cut to"),
        (lambda coded: torch.cat([coded, coded[:1]]), "left over"),
        (lambda coded: torch.cat([torch.tensor([77], dtype=torch.uint8), coded[1:]]), "coding 77 is unknown"),
        (lambda coded: torch.cat([coded[:1], coded[:1] + 200, coded[2:]]), "do not hold"),
    ],
)
def test_malformed_bytes_are_refused(change: object, said: str) -> None:
    """The error says which mask and what is wrong with it."""
    coded = encode({"layer": random_mask(1000, 0.1)})
    with pytest.raises(ValueError, match=said):
        decode(change(coded), {"layer": (1000,)})  # type: ignore[operator]


def test_entries_beyond_the_shape_are_refused() -> None:
    """A mask of 1,000 entries is none of 100."""
    with pytest.raises(ValueError, match="of 100"):
        decode(encode({"layer": random_mask(1000, 0.02)}), {"layer": (100,)})
    plain = encode({"layer": torch.arange(16) % 2 == 0})
    assert plain[0] == 64
    with pytest.raises(ValueError, match="beyond its end"):
        decode(plain, {"layer": (13,)})


def test_only_boolean_masks_are_coded() -> None:
    """The error names the mask."""
    with pytest.raises(ValueError, match="'layer' must be boolean"):
        encode({"layer": torch.zeros(3)})
    with pytest.raises(ValueError, match="must be uint8"):
        decode(torch.zeros(3), {})
