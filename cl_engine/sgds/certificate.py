"""The certificate: proof that a session changed nothing of what earlier sessions answer with.

Exclusive units promise that for every earlier session its units, masks, own head and blend are
bit-identical, and so is what its adapters put out. The first is proved by comparing digests of the
bytes, the second by running the adapters on a fixed probe. The base head is outside the promise: its
classes compete, exactly as they would had all been learnt together. So is the head of a family (see
`family`) from the moment another session joins it; its units and masks stay inside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cl_engine.errors import CertificateViolation
from cl_engine.sgds.adapter import adapt
from cl_engine.sgds.content import Content

PROBE_TOKENS = 4
PROBE_SEED = 20260101
FAMILY_PROMISE = (
    "units, masks and adapter output of a family's subspace are bit-identical; its classes compete in its "
    "head, exactly as they would had all been learnt together"
)
PROMISE = "units, masks, own head, blend and adapter output of every earlier session are bit-identical"


def certify(before: Content | None, after: Content) -> dict[str, Any]:
    """Compare the earlier sessions' subspaces in two contents.

    Returns:
        The certificate as it stands in the manifest.

    Raises:
        CertificateViolation: naming the first subspace that differs.
    """
    digests = subspace_digests(after)
    earlier = {} if before is None else subspace_digests(before, joined=after.joined)
    for subspace, digest in earlier.items():
        if digests.get(subspace) != digest:
            raise CertificateViolation(
                f"subspace {subspace} is not what it was before this session: "
                f"{digests.get(subspace, 'missing')} instead of {digest}"
            )
    supports = after.class_masks.flatten(1).float()
    shared = supports @ supports.T
    pairs = torch.triu(torch.ones_like(shared), diagonal=1).bool()
    families = [] if after.joined is None else after.joined.nonzero().squeeze(1).tolist()
    return {
        "promise": PROMISE,
        **({"families": families, "family_promise": FAMILY_PROMISE} if families else {}),
        "holds": True,
        "verified_subspaces": sorted(earlier, key=int),
        "digests": digests,
        "class_pairs": int(pairs.sum()),
        "class_pairs_with_disjoint_input_supports": int((shared[pairs] == 0).sum()),
    }


def certify_forgetting(before: Content, after: Content, column: int) -> dict[str, Any]:
    """Prove that forgetting the class at a column changed nothing of what other classes answer with.

    Raises:
        CertificateViolation: naming the first subspace that differs, the class itself left out of it.
    """
    earlier = subspace_digests(before, without=column)
    later = subspace_digests(after, joined=before.joined)
    served = set(after.class_subspace.tolist()) | set(after.subspaces.borrowed.tolist())
    kept = [s for s in earlier if int(s) in served]
    for subspace in kept:
        if later[subspace] != earlier[subspace]:
            raise CertificateViolation(
                f"subspace {subspace} is not what it was before a class was forgotten: "
                f"{later[subspace]} instead of {earlier[subspace]}"
            )
    return {"promise": PROMISE, "holds": True, "verified_subspaces": kept, "digests": later}


def subspace_digests(
    content: Content, without: int | None = None, joined: Tensor | None = None
) -> Mapping[str, str]:
    """Hash each subspace: its bytes, and its adapters' output on the probe.

    Args:
        content: what to hash.
        without: column of a class that is left out.
        joined: bool (S,), families, whose heads and classes are no part of the promise; the content's own if
            None.
    """
    result = {}
    families = content.joined if joined is None else joined
    down, up = content.subspaces.effective(torch.device("cpu"), torch.float32)
    # What is under every session's units is part of what every session answers with.
    shared = [] if content.shared is None else list(content.shared.tensors().values())
    for subspace in range(len(content.subspaces)):
        digest = hashlib.sha256()
        member = content.class_subspace == subspace
        if without is not None:
            member[without] = False
        family = families is not None and bool(families[subspace])
        head = (
            content.class_masks[member],
            content.subspace_head[:, member],
            content.blend[subspace],
        )
        parts = (
            content.subspaces.down[subspace],
            content.subspaces.up[subspace],
            content.subspaces.borrowed[subspace],
            content.subspaces.input_masks[subspace],
            content.subspace_mean[subspace],
            content.subspace_scale[subspace],
            *(() if family else head),
            _probe(content.subspaces.input_masks[subspace], down[subspace], up[subspace]),
            *shared,
        )
        for part in parts:
            digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        result[str(subspace)] = digest.hexdigest()
    return result


def _probe(masks: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return each adapter's output on fixed random tokens, (L, 1, tokens, d)."""
    width = down.shape[-1]
    generator = torch.Generator().manual_seed(PROBE_SEED)
    tokens = torch.randn(1, PROBE_TOKENS, width, generator=generator)
    return torch.stack(
        [
            adapt(
                tokens,
                masks[layer][None],
                down[layer][None],
                up[layer][None],
                1.0,
            )
            for layer in range(len(down))
        ]
    )
