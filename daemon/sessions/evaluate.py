"""Measure a generation on the holdout through the very servable that will answer requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from cl_engine import evaluation
from cl_engine.generation import Generation
from cl_engine.learners import Servable
from cl_engine.samples import SampleSet

BATCH = 32


def evaluate(
    generation: Generation,
    servable: Servable,
    holdout: SampleSet,
    parent_evaluation: Mapping[str, Any] | None,
    on_batch: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Return the accuracy matrix with this generation's row, and what follows from it.

    Args:
        generation: what is measured.
        servable: made from it.
        holdout: samples of all its classes.
        parent_evaluation: of the generation it builds on, for the matrix's earlier rows.
        on_batch: called with the finished share.
    """
    count = len(holdout.labels)
    predicted = []
    for start in range(0, count, BATCH):
        rows = range(start, min(start + BATCH, count))
        predicted.append(servable.predict(holdout.load(rows)).class_ids)
        if on_batch is not None:
            on_batch(min(1.0, rows.stop / count))
    answers = torch.cat(predicted) if predicted else torch.zeros(0, dtype=torch.int64)
    session_of = {entry.id: entry.session for entry in generation.classes}
    row = evaluation.accuracy_matrix_row(answers, holdout.labels, session_of)
    # A session that only refreshed known classes adds a row and a column that nothing is measured in.
    row += [None] * (generation.session + 1 - len(row))
    earlier = list(parent_evaluation["accuracy_matrix"]) if parent_evaluation else []
    matrix = [*earlier, row]
    weights = evaluation.holdout_counts(holdout.labels, session_of)
    weights += [0] * (len(matrix) - len(weights))
    per_class = evaluation.class_accuracies(answers, holdout.labels)
    measured = any(value is not None for value in row)
    curve = [*(parent_evaluation["a_t_curve"] if parent_evaluation else [])]
    curve.append(float((answers == holdout.labels).double().mean()) if measured else None)
    known = [value for value in curve if value is not None]
    return {
        **generation.evaluation,
        "accuracy_matrix": matrix,
        "a_t_curve": curve,
        "a_t": curve[-1],
        "a_bar": sum(known) / len(known) if known else None,
        "forgetting": evaluation.forgetting(matrix),
        "backward_transfer": evaluation.backward_transfer(matrix),
        "class_accuracy": {str(class_id): value for class_id, value in per_class.items()},
        "holdout_samples": count,
    }


def without_last_session(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation as it was before its last session, for a generation that takes its place.

    A generation without one of the classes is measured anew as the last session's row. The rows before are
    those measured then, with the class still among the answers; nobody can measure them again.
    """
    return {
        "accuracy_matrix": list(evaluation["accuracy_matrix"])[:-1],
        "a_t_curve": list(evaluation["a_t_curve"])[:-1],
    }
