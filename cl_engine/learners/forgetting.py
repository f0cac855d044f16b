"""Forgetting a class exactly: subtract its samples from the sums, drop its columns.

The sums over all samples mix the classes, so a class can be subtracted only with its own samples at hand.
They are computed again from the samples at the moment of forgetting, not kept with every generation: a
factor of each class's second moment would have to be float64, n x D numbers a class (a float32 one is off
by 6e-8 of the sum, above the 1e-6 promised once more than a dozen samples of unit scale are added up),
and whoever asks to be forgotten would rather not have a second copy lie about.

What is exact: the sums equal those of a run that never saw the class, with the same standardisation, and
so does the head, which is a function of the sums alone. What stays: the standardisation of the first
session (one mean and one scale per dimension), and the sorted table of holdout distances behind the unknown
score, which names no class. Neither holds a sample. With `adapt_first_session` the adapters trained on the
first session stay too, and every feature is read through them: a class of that session leaves the sums, but
not the adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from cl_engine.errors import UnsupportedGeneration
from cl_engine.generation import Generation
from cl_engine.heads import RidgeStatistics
from cl_engine.heads.ridge import FOLDS, fold_of
from cl_engine.samples import SampleSet

# Share of a class's own sum that may be left after the subtraction: bfloat16 features, computed again in
# batches of another size, differ by some 1e-3; samples that are not the learnt ones by far more.
RESIDUAL_LIMIT = 0.02


@runtime_checkable
class Forgets(Protocol):
    """A learner that can take a class out of a generation exactly."""

    def forget(self, generation: Generation, class_id: int, samples: SampleSet) -> Generation:
        """Return a generation that never saw the class.

        Args:
            generation: with its learner state.
            class_id: permanent id of the class.
            samples: every training sample of the class that any session has learnt.
        """
        ...


def check_known(generation: Generation, class_id: int, samples: SampleSet) -> int:
    """Return the class's column.

    Raises:
        UnsupportedGeneration: the generation has no learner state to subtract from.
        ValueError: the class is not in the table or alone in it, or a sample is of another class.
    """
    if class_id not in generation.class_ids:
        raise ValueError(f"class {class_id} is not one of generation {generation.digest}: nothing to forget")
    if len(generation.classes) == 1:
        raise ValueError(f"class {class_id} is the only one of generation {generation.digest}: remove that")
    if not generation.learner_state:
        raise UnsupportedGeneration(
            f"generation {generation.digest}: its learner state is gone, forget in one that keeps it"
        )
    strangers = set(samples.labels.tolist()) - {class_id}
    if strangers:
        raise ValueError(f"samples are of classes {sorted(strangers)} too: pass those of {class_id} alone")
    return generation.class_ids.index(class_id)


def taken_out(
    statistics: RidgeStatistics, features: Tensor, ids: Sequence[str], column: int, class_id: int
) -> tuple[RidgeStatistics, float]:
    """Subtract a class's samples and drop its column.

    Args:
        statistics: sums that hold the class.
        features: of all its samples, as they were added, (N, D).
        ids: of the samples.
        column: the class's.
        class_id: for the error.

    Returns:
        The statistics without the class, and the share of its sum that rounding left over.

    Raises:
        ValueError: the samples are not those that were added.
    """
    folds = fold_of(ids)
    learnt = statistics.count[:, column]
    given = torch.bincount(folds, minlength=FOLDS)
    if not torch.equal(given, learnt):
        raise ValueError(
            f"class {class_id} was learnt from {int(learnt.sum())} samples ({learnt.tolist()} by fold), "
            f"{len(ids)} ({given.tolist()}) were passed: pass all of them, once each"
        )
    columns = torch.full((len(ids),), column, dtype=torch.int64)
    classes = statistics.count.shape[1]
    less = statistics.updated(features, columns, folds, classes, sign=-1)
    # The class's own column must have come to nothing: if not, other samples were subtracted.
    left = less.cross[:, :, column].norm() / statistics.cross[:, :, column].norm()
    residual = float(left)
    if residual > RESIDUAL_LIMIT:
        raise ValueError(
            f"class {class_id}: {residual:.3g} of its sum is left after subtracting the samples: they are "
            "not those it was learnt from"
        )
    return less.without(column), residual


def without_class(
    generation: Generation,
    class_id: int,
    *,
    tensors: Mapping[str, Tensor],
    learner_state: Mapping[str, Tensor],
    certificate: Mapping[str, Any],
    masks: Mapping[str, Tensor] | None = None,
) -> Generation:
    """Put together the generation after forgetting; the evaluation of the one before says nothing of it."""
    return replace(
        generation,
        classes=tuple(entry for entry in generation.classes if entry.id != class_id),
        tensors=tensors,
        masks=generation.masks if masks is None else masks,
        learner_state=learner_state,
        evaluation={},
        certificate=certificate,
        provenance={},
        parent=generation.digest,
    )
