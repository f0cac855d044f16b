"""Entropy-coded masks: close to n H(p) bits where bit-packing takes n.

A mask of density p holds n H(p) bits, H(p) = -p log2 p - (1 - p) log2(1 - p): 0.47 n at 10 %, 0.14 n at
2 %. The gaps between kept entries are geometrically distributed, for which a Golomb code is optimal; its
power-of-two form (Rice) needs only shifts and stays within 5 % of the bound for densities up to 0.38.
Above that plain bits are as close. A mask that keeps more than half is coded by what it drops.

A coded mask set is, for each mask in the caller's order, a header and a body:

    coding   uint8   0 to 31: Rice code with that many remainder bits; 64: plain bits; +128: complement
    count    uint32  gaps coded; 0 for plain bits
    length   uint32  bytes of the body

all little end first. A Rice body holds the gaps' quotients, each as that many 1 bits and a 0, then
their remainders, then 0 bits up to a whole byte.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_HEADER = struct.Struct("<BII")
_PLAIN = 64
_COMPLEMENT = 128
# Gaps are below 2^32, so more remainder bits would always be 0.
_MOST_REMAINDER_BITS = 31

Bits = npt.NDArray[np.uint8]


def encode(masks: Mapping[str, Tensor]) -> Tensor:
    """Code boolean masks of any shapes, in the mapping's order, into uint8 (bytes,).

    The same masks always give the same bytes.

    Raises:
        ValueError: a mask is not boolean, or has 2^32 entries or more.
    """
    parts = []
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise ValueError(f"mask {name!r} must be boolean, is {mask.dtype}")
        if mask.numel() >= 1 << 32:
            raise ValueError(f"mask {name!r} has {mask.numel()} entries: at most 2^32 - 1 can be coded")
        coding, count, body = _encoded(mask.detach().cpu().reshape(-1).numpy())
        parts += [_HEADER.pack(coding, count, len(body)), body]
    return torch.from_numpy(np.frombuffer(b"".join(parts), dtype=np.uint8).copy())


def decode(coded: Tensor, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return the boolean masks that `encode` coded.

    Args:
        coded: uint8 (bytes,).
        shapes: shape of each mask, in the order in which they were coded.

    Raises:
        ValueError: the bytes are not what `encode` makes of masks of these shapes.
    """
    if coded.dtype != torch.uint8 or coded.ndim != 1:
        raise ValueError(f"coded masks must be uint8 (bytes,), are {coded.dtype} {tuple(coded.shape)}")
    data = coded.cpu().contiguous().numpy()
    masks = {}
    for name, shape in shapes.items():
        try:
            flat, data = _next_mask(data, math.prod(shape))
        except ValueError as error:
            raise ValueError(f"coded mask {name!r} of shape {tuple(shape)} is damaged: {error}") from error
        masks[name] = torch.from_numpy(flat).reshape(tuple(shape))
    if len(data):
        raise ValueError(f"{len(data)} bytes are left over after the last of {len(shapes)} masks")
    return masks


def entropy_bytes(masks: Mapping[str, Tensor]) -> float:
    """Return the entropy bound of a mask set: the sum of n H(p) over its masks, in bytes."""
    bits = 0.0
    for mask in masks.values():
        share = mask.double().mean().item()
        bits -= sum(mask.numel() * p * math.log2(p) for p in (share, 1 - share) if p > 0)
    return bits / 8


def _encoded(flat: npt.NDArray[np.bool_]) -> tuple[int, int, bytes]:
    """Code one mask: its coding, gap count and body."""
    kept = int(flat.sum())
    complement = _COMPLEMENT if 2 * kept > len(flat) else 0
    positions = np.flatnonzero(flat if not complement else ~flat)
    gaps = np.diff(positions, prepend=-1) - 1
    remainder_bits, size = _best_remainder_bits(gaps)
    plain = np.packbits(flat, bitorder="little").tobytes()
    if (size + 7) // 8 >= len(plain) > 0:
        return _PLAIN, 0, plain
    quotients = gaps >> remainder_bits
    unary = np.ones(int(quotients.sum()) + len(gaps), dtype=np.uint8)
    unary[np.cumsum(quotients + 1) - 1] = 0
    remainders = (gaps[:, None] >> np.arange(remainder_bits)) & 1
    bits = np.concatenate([unary, remainders.astype(np.uint8).reshape(-1)])
    return complement | remainder_bits, len(gaps), np.packbits(bits, bitorder="little").tobytes()


def _best_remainder_bits(gaps: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Return the remainder bits that code the gaps shortest, the fewest of equal ones, and that length."""
    sizes = [
        int((gaps >> bits).sum()) + len(gaps) * (1 + bits)
        for bits in range(min(_MOST_REMAINDER_BITS, int(gaps.max(initial=0)).bit_length()) + 1)
    ]
    best = int(np.argmin(sizes))
    return best, sizes[best]


def _next_mask(data: Bits, entries: int) -> tuple[npt.NDArray[np.bool_], Bits]:
    """Decode the mask at the start of the data; return it and the data behind it.

    Raises:
        ValueError: it is cut short or not what `_encoded` makes.
    """
    if len(data) < _HEADER.size:
        raise ValueError("its header is cut short")
    coding, count, length = _HEADER.unpack(data[: _HEADER.size].tobytes())
    body = data[_HEADER.size :]
    if len(body) < length:
        raise ValueError(f"its body of {length} bytes is cut to {len(body)}")
    return _decoded(coding, count, body[:length], entries), body[length:]


def _decoded(coding: int, count: int, body: Bits, entries: int) -> npt.NDArray[np.bool_]:
    """Decode one mask's body.

    Raises:
        ValueError: it is not what `_encoded` makes.
    """
    if coding == _PLAIN:
        if count or len(body) != (entries + 7) // 8:
            raise ValueError(f"{len(body)} plain bytes for {entries} entries")
        bits = np.unpackbits(body, bitorder="little")
        if bits[entries:].any():
            raise ValueError("bits are set beyond its end")
        return bits[:entries].astype(bool)
    complement, remainder_bits = bool(coding & _COMPLEMENT), coding & ~_COMPLEMENT
    if remainder_bits > _MOST_REMAINDER_BITS:
        raise ValueError(f"coding {coding} is unknown")
    if count > entries:
        raise ValueError(f"{count} gaps for {entries} entries")
    bits = np.unpackbits(body, bitorder="little")
    ends = np.flatnonzero(bits == 0)[:count]
    unary = int(ends[-1]) + 1 if count else 0
    used = unary + count * remainder_bits
    if len(ends) < count or (used + 7) // 8 != len(body) or bits[used:].any():
        raise ValueError(f"{len(body)} bytes do not hold {count} gaps with {remainder_bits} remainder bits")
    quotients = np.diff(ends, prepend=-1) - 1
    powers = np.int64(1) << np.arange(remainder_bits, dtype=np.int64)
    remainders = bits[unary:used].reshape(count, remainder_bits).astype(np.int64) @ powers
    positions = np.cumsum((quotients << remainder_bits) + remainders + 1) - 1
    if count and not 0 <= positions[-1] < entries:
        raise ValueError(f"an entry lies at {positions[-1]} of {entries}")
    flat = np.full(entries, complement)
    flat[positions] = not complement
    return flat
