"""Each method's certificate, against a learner that is broken on purpose: it drifts what is old."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from cl_engine.errors import CertificateViolation
from cl_engine.heads import PrototypeStatistics, RidgeStatistics, Standardiser
from cl_engine.learners import create, methods
from cl_engine.learners.analytic import Head
from cl_engine.sgds.adapter import Subspaces
from cl_engine.supermask.network import MaskedNetwork
from tests.support.methods import OPTIONS, two_sessions
from tests.support.small_backbone import small_backbone

DRIFT = 1e-6
Drift = Callable[[pytest.MonkeyPatch], None]


def drifting(owner: Any, name: str, change: Callable[[Any], Any]) -> Drift:
    """Return what breaks a method's step: its result is changed."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        right = getattr(owner, name)

        def broken(*arguments: Any, **options: Any) -> Any:
            return change(right(*arguments, **options))

        patch.setattr(owner, name, broken)

    return apply


def off(tensor: Tensor, place: Any) -> Tensor:
    """Return a copy that is off by a little in one place."""
    changed = tensor.clone()
    changed[place] += DRIFT
    return changed


def moved_weight(network: MaskedNetwork) -> MaskedNetwork:
    """Move one weight under the first session's mask."""
    name, mask = next(iter(network.masks(0).items()))
    place = tuple(mask.nonzero()[0].tolist())
    return replace(network, weights={**network.weights, name: off(network.weights[name], place)})


def moved_standardiser(head: Head) -> Head:
    """Move one dimension's mean."""
    mean, scale = head.standardiser.mean, head.standardiser.scale
    return replace(head, standardiser=Standardiser(off(mean, 0), scale))


RIDGE_SUMS = drifting(RidgeStatistics, "updated", lambda r: replace(r, cross=off(r.cross, (0, 3, 0))))
RIDGE_GRAM = drifting(RidgeStatistics, "updated", lambda r: replace(r, gram=off(r.gram, (0, -1, 3))))
PROTOTYPES = drifting(PrototypeStatistics, "updated", lambda p: replace(p, total=off(p.total, (0, 3))))
COUNTS = drifting(PrototypeStatistics, "updated", lambda p: replace(p, count=p.count + 1))
STANDARDISER = drifting(
    Head,
    "read",
    lambda head: replace(
        head, standardiser=Standardiser(off(head.standardiser.mean, 0), head.standardiser.scale)
    ),
)
UNITS = drifting(Subspaces, "extended", lambda s: replace(s, down=off(s.down, (0, 0, 0, 0))))
BORROWED = drifting(Subspaces, "extended", lambda s: replace(s, input_masks=~s.input_masks))
WEIGHTS = drifting(MaskedNetwork, "extended", moved_weight)
BROKEN: dict[str, dict[str, Drift]] = {
    "ridge": {
        "ridge.cross of class 0": RIDGE_SUMS,
        "different samples": RIDGE_GRAM,
        "prototypes.total of class 0": PROTOTYPES,
        "mean is not": STANDARDISER,
    },
    "ranpac": {"ridge.cross of class 0": RIDGE_SUMS, "mean is not": STANDARDISER},
    "slda": {"ridge.cross of class 0": RIDGE_SUMS, "prototypes.total of class 0": PROTOTYPES},
    "ncm": {"total of class 0": PROTOTYPES, "counts 25 samples": COUNTS},
    "sgds": {"subspace 0 is not": UNITS, "subspace 0 is not what": BORROWED},
    "exssnet": {"session 0: weights": WEIGHTS},
    "supsup": {"session 0: weights": WEIGHTS},
}


@pytest.mark.parametrize(
    ("method", "message"), [(m, words) for m, broken in BROKEN.items() for words in broken]
)
def test_a_learner_that_drifts_what_is_old_fails(
    monkeypatch: pytest.MonkeyPatch, method: str, message: str
) -> None:
    """The session ends with the violation, naming what moved; without the fault it is certified."""
    first, second = two_sessions()
    learner = create(method, small_backbone(), OPTIONS[method])
    taught = learner.learn(first, None)
    BROKEN[method][message](monkeypatch)
    with pytest.raises(CertificateViolation, match=message):
        learner.learn(second, taught)
    monkeypatch.undo()
    assert learner.learn(second, taught).certificate["holds"]


def test_every_method_but_the_one_that_promises_nothing_is_here() -> None:
    """Naive fine-tuning says so in its certificate."""
    assert set(methods()) - set(BROKEN) == {"finetune"}
    generation = create("finetune", small_backbone(), OPTIONS["finetune"]).learn(two_sessions()[0], None)
    assert str(generation.certificate["promise"]).startswith("none")
