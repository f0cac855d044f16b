"""The certificate of the analytic learners: a session added its own samples to the sums, and nothing else.

Their promise is exactness: after any sessions the sums are those of all samples at once. Proved of each
session: what was fixed by the first one (standardisation, projection, adapters) is bit-identical; so are the
sums of every class that got no sample; every class's count has grown by exactly its samples; and the Gram
matrices have taken in the same samples as the class sums, for the row of their intercept has grown by what
the classes' sums have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cl_engine.errors import CertificateViolation
from cl_engine.generation import Generation
from cl_engine.heads import RidgeStatistics

PROMISE = "the statistics are exact sums over samples; those of the other classes are untouched"
# What the head is solved or calibrated from anew in every session.
SOLVED = frozenset({"weights", "prototypes", "sharpness", "distances"})
# Rounding of sums in float64, with room: 1e-16 a sample over millions of them.
TOLERANCE = 1e-9


def certify_sums(previous: Generation | None, made: Generation, samples: Mapping[int, int]) -> dict[str, Any]:
    """Compare a generation with the one it was built on.

    Args:
        previous: with its learner state; None in the first session.
        made: with its learner state, a certificate not yet made.
        samples: how many samples of each class id the session has learnt.

    Returns:
        The certificate as it stands in the manifest.

    Raises:
        CertificateViolation: naming what is not as promised.
    """
    if previous is not None:
        _check_fixed(previous, made)
    _check_counts(previous, made, samples)
    kept = [] if previous is None else [c for c in previous.class_ids if not samples.get(c)]
    if previous is not None:
        _check_columns(previous, made, kept)
    _check_gram(previous, made)
    return {"promise": PROMISE, "holds": True, "verified_classes": kept}


def certify_removal(before: Generation, after: Generation) -> dict[str, Any]:
    """Prove that taking a class out changed nothing of the other classes' sums.

    That it left nothing of the class's own behind in the Gram matrices is what `taken_out` measures.

    Raises:
        CertificateViolation: naming what is not as promised.
    """
    _check_fixed(before, after)
    _check_columns(before, after, after.class_ids)
    return {"promise": PROMISE, "holds": True, "verified_classes": list(after.class_ids)}


def _check_fixed(before: Generation, after: Generation) -> None:
    for name in before.tensors.keys() - SOLVED:
        if name not in after.tensors or not torch.equal(after.tensors[name], before.tensors[name]):
            raise CertificateViolation(f"{name} is not what the first session fixed")


def _check_counts(previous: Generation | None, made: Generation, samples: Mapping[int, int]) -> None:
    known = {} if previous is None else dict(zip(previous.class_ids, _counts(previous), strict=True))
    for class_id, count in zip(made.class_ids, _counts(made), strict=True):
        expected = known.get(class_id, 0) + samples.get(class_id, 0)
        if count != expected:
            raise CertificateViolation(f"class {class_id} counts {count} samples, it was given {expected}")


def _counts(generation: Generation) -> list[int]:
    state = generation.learner_state
    return [int(n) for n in (state["prototypes.count"] if "prototypes.count" in state else state["count"])]


def _check_columns(before: Generation, after: Generation, class_ids: Sequence[int]) -> None:
    old, new = _columns(before), _columns(after)
    for class_id in class_ids:
        was, now = before.class_ids.index(class_id), after.class_ids.index(class_id)
        for name, tensor in old.items():
            if not torch.equal(new[name][now], tensor[was]):
                raise CertificateViolation(f"{name} of class {class_id} changed, though it got no sample")


def _columns(generation: Generation) -> dict[str, Tensor]:
    """Return everything that is summed up per class, the classes first."""
    state = generation.learner_state
    if "ridge.cross" not in state:
        return {"total": state["total"], "count": state["count"]}
    return {
        "ridge.cross": state["ridge.cross"].permute(2, 0, 1),
        "ridge.count": state["ridge.count"].T,
        "prototypes.total": state["prototypes.total"],
        "prototypes.count": state["prototypes.count"],
    }


def _check_gram(previous: Generation | None, made: Generation) -> None:
    if "ridge.gram" not in made.learner_state:
        return
    grown, classes = _sums(made)
    scale = 1 + float(classes.norm())
    if previous is not None:
        grown, classes = (now - before for now, before in zip((grown, classes), _sums(previous), strict=True))
    off = float((grown - classes).norm()) / scale
    if off > TOLERANCE:
        raise CertificateViolation(
            f"the Gram matrices and the class sums hold different samples: they differ by {off:.3g}"
        )


def _sums(generation: Generation) -> tuple[Tensor, Tensor]:
    """Return the sum of all samples twice, (2, D + 1) each: by the Gram matrices, and by the classes."""
    ridge = RidgeStatistics.read(generation.learner_state, "ridge.", torch.device("cpu"))
    return ridge.gram[:, -1], ridge.cross.sum(dim=2)
