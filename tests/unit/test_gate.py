"""The gate: each condition alone, at its bound, on matrices worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.sessions import gate
from daemon.settings import GateSettings
from tests.support.session_rig import evaluated

HOLDS = {"holds": True}
SETTINGS = GateSettings(min_accuracy=0.8, max_accuracy_drop=0.1, max_forgetting=0.2)
# Earlier classes: (0.9 + 0.7) / 2 before, (0.8 + 0.6) / 2 after: a drop of 0.1, exactly the bound.
MATRIX: list[list[float | None]] = [[0.9], [0.9, 0.7], [0.8, 0.6, 1.0]]


def judged(
    evaluation: dict[str, Any], certificate: dict[str, Any] | None = None, **bounds: float
) -> gate.GateResult:
    """Judge with some other bounds."""
    settings = SETTINGS.model_copy(update=bounds)
    return gate.judge(settings, evaluation, HOLDS if certificate is None else certificate)


def test_all_conditions_at_their_bounds_pass() -> None:
    """A_T, drop and forgetting exactly at their bounds are within them, float noise included."""
    result = judged(evaluated(MATRIX, 0.8, forgetting=0.1 + 0.1))
    assert result.passed
    assert result.reason == "every condition holds on the holdout"
    assert result.facts["accuracy_drop"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("evaluation", "bounds", "words"),
    [
        (evaluated(MATRIX, 0.79), {}, "A_T 0.7900 is below min_accuracy 0.8"),
        (evaluated(MATRIX, 0.8), {"max_accuracy_drop": 0.09}, "falls by 0.1000, above max_accuracy_drop"),
        (evaluated(MATRIX, 0.8, 0.21), {}, "forgetting 0.2100 is above max_forgetting 0.2"),
    ],
)
def test_each_condition_fails_alone(evaluation: dict[str, Any], bounds: dict[str, float], words: str) -> None:
    """Each bound overstepped gives one failure, with the number and the setting's name."""
    result = judged(evaluation, **bounds)
    assert not result.passed
    assert len(result.failures) == 1
    assert words in result.reason


@pytest.mark.parametrize("certificate", [{}, {"holds": False}])
def test_a_certificate_that_does_not_hold_fails(certificate: dict[str, Any]) -> None:
    """A missing certificate fails the gate like a broken one."""
    result = judged(evaluated(MATRIX, 0.8), certificate)
    assert result.failures == ("the certificate does not hold",)
    assert result.facts["certificate"] is False


def test_every_failure_is_named() -> None:
    """All failed conditions appear in the recorded reason."""
    result = judged(evaluated([[1.0], [0.5, 0.5]], 0.5, 0.5), {})
    record = result.record(5.0)
    assert len(result.failures) == 4
    assert (record.at, record.kind, record.fired) == (5.0, "gate", False)
    assert record.reason.count(";") == 3


@pytest.mark.parametrize(
    ("matrix", "drop"),
    [
        ([[0.5]], 0.0),
        ([[0.8], [0.6, 1.0]], 0.2),
        ([[0.8], [0.9, 0.1]], -0.1),
        # Session 1 has no holdout before, session 0 none after: nothing can be compared.
        ([[0.5], [0.5, None], [None, 0.2, 1.0]], 0.0),
        # Only session 0 is known in both rows.
        ([[0.5], [0.75, None], [0.5, 0.25, 1.0]], 0.25),
    ],
)
def test_drop_on_hand_worked_matrices(matrix: list[list[float | None]], drop: float) -> None:
    """The drop is the mean over sessions measured in the last two rows."""
    assert gate.accuracy_drop(matrix) == pytest.approx(drop)


def test_an_unmeasured_generation_passes_on_its_certificate() -> None:
    """Without a holdout sample there is no accuracy to judge."""
    assert judged(evaluated([[None]], None)).passed
