"""The gate: what a new generation must show on the holdout before it goes live."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daemon.settings import GateSettings
from daemon.state.base import Decision

KIND = "gate"
POLICY = "holdout"
# Accuracies are ratios of small integers; a bound must not fail on the last bit of one.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class GateResult:
    """Whether a generation may go live, and each condition that it failed."""

    passed: bool
    failures: tuple[str, ...]
    facts: Mapping[str, Any]

    @property
    def reason(self) -> str:
        """One sentence for people."""
        return "; ".join(self.failures) if self.failures else "every condition holds on the holdout"

    def record(self, at: float) -> Decision:
        """Return it as an entry of the decision log."""
        return Decision(at, KIND, POLICY, self.passed, self.reason, self.facts)


def judge(
    settings: GateSettings, evaluation: Mapping[str, Any], certificate: Mapping[str, Any]
) -> GateResult:
    """Judge a generation.

    The drop compares, on the same holdout samples, the accuracy on the earlier sessions' classes now
    and after the session before.

    Args:
        settings: the bounds.
        evaluation: of the new generation, from `evaluate`.
        certificate: of the new generation.
    """
    matrix: list[list[float | None]] = evaluation["accuracy_matrix"]
    failures = []
    if not certificate.get("holds", False):
        failures.append("the certificate does not hold")
    accuracy: float | None = evaluation["a_t"]
    if accuracy is not None and accuracy < settings.min_accuracy - TOLERANCE:
        failures.append(f"A_T {accuracy:.4f} is below min_accuracy {settings.min_accuracy:g}")
    drop = accuracy_drop(matrix)
    if drop > settings.max_accuracy_drop + TOLERANCE:
        failures.append(
            f"the accuracy on earlier classes falls by {drop:.4f}, above max_accuracy_drop "
            f"{settings.max_accuracy_drop:g}"
        )
    forgetting: float = evaluation["forgetting"]
    if forgetting > settings.max_forgetting + TOLERANCE:
        failures.append(f"forgetting {forgetting:.4f} is above max_forgetting {settings.max_forgetting:g}")
    facts = {
        "a_t": accuracy,
        "forgetting": forgetting,
        "accuracy_drop": drop,
        "certificate": bool(certificate.get("holds", False)),
        "holdout_samples": evaluation["holdout_samples"],
    }
    return GateResult(not failures, tuple(failures), facts)


def judge_forgetting(evaluation: Mapping[str, Any], certificate: Mapping[str, Any]) -> GateResult:
    """Judge a generation that a class was taken out of: the others must be proved untouched.

    Its accuracy is measured and written down, but bounds nothing: whoever has a class forgotten wants it
    gone, also where the others were easier to tell apart with it.
    """
    holds = bool(certificate.get("holds", False))
    facts = {
        "a_t": evaluation["a_t"],
        "forgetting": evaluation["forgetting"],
        "certificate": holds,
        "holdout_samples": evaluation["holdout_samples"],
    }
    return GateResult(holds, () if holds else ("the certificate does not hold",), facts)


def accuracy_drop(matrix: list[list[float | None]]) -> float:
    """Return by how much the mean accuracy on earlier sessions fell with the last session; 0 for one."""
    if len(matrix) < 2:
        return 0.0
    pairs = [
        (before, now)
        for before, now in zip(matrix[-2], matrix[-1], strict=False)
        if before is not None and now is not None
    ]
    if not pairs:
        return 0.0
    return sum(before - now for before, now in pairs) / len(pairs)
