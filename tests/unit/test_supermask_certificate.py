"""The certificate: it holds for the methods that promise, and fails whoever breaks the promise."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cl_engine.errors import CertificateViolation
from cl_engine.supermask.certificate import certify, verify
from cl_engine.supermask.network import MaskedNetwork
from tests.support.supermasks import perceptron, quick, trained


@pytest.fixture(scope="module")
def two_sessions() -> MaskedNetwork:
    """Train two sessions."""
    return trained(MaskedNetwork.create(perceptron, seed=0), 2, quick())


@pytest.mark.parametrize("method", ["supsup", "exssnet"])
def test_it_holds_after_later_sessions(method: str) -> None:
    """A certificate made after the first session still holds after the third, also when read from JSON."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 1, quick(method=method))
    certificate = json.loads(json.dumps(certify(network)))
    verify(trained(network, 2, quick(method=method)), certificate)


def test_going_on_from_an_earlier_certificate_records_the_same(two_sessions: MaskedNetwork) -> None:
    """Only the new session's digests are computed anew; the outcome is that of a certificate from scratch."""
    earlier = certify(replace(two_sessions, sessions=two_sessions.sessions[:1]))
    assert certify(two_sessions, earlier) == certify(two_sessions)


def test_certificates_of_earlier_releases_still_count(two_sessions: MaskedNetwork) -> None:
    """Without a digest over all sessions each one is checked by itself."""
    certificate = {key: value for key, value in certify(two_sessions).items() if key != "whole"}
    verify(two_sessions, certificate)
    weights = {key: weight + 1 for key, weight in two_sessions.weights.items()}
    with pytest.raises(CertificateViolation, match="session 0: weights changed"):
        verify(replace(two_sessions, weights=weights), certificate)


def test_a_certificate_at_odds_with_itself_fails(two_sessions: MaskedNetwork) -> None:
    """Every session as certified, but not the digest over all: somebody wrote into the certificate."""
    with pytest.raises(CertificateViolation, match="digest over all of them"):
        verify(two_sessions, certify(two_sessions) | {"whole": "0"})


def test_the_method_that_forgets_fails() -> None:
    """SSNeT changes weights under an earlier mask, and only weights."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 1, quick(method="ssnet"))
    certificate = certify(network)
    with pytest.raises(CertificateViolation, match="session 0: weights changed"):
        verify(trained(network, 1, quick(method="ssnet")), certificate)


def test_a_learner_that_touches_one_weight_fails(two_sessions: MaskedNetwork) -> None:
    """A single weight under the first mask, moved by one unit in the last place."""
    certificate = certify(two_sessions)
    name = "layers.0.weight"
    weights = {key: weight.clone() for key, weight in two_sessions.weights.items()}
    row, column = two_sessions.masks(0)[name].nonzero()[0].tolist()
    weights[name][row, column] = weights[name][row, column].nextafter(weights[name].new_tensor(9.0))
    with pytest.raises(CertificateViolation, match="session 0: weights changed"):
        verify(replace(two_sessions, weights=weights), certificate)


def test_weights_under_no_mask_are_free_to_change(two_sessions: MaskedNetwork) -> None:
    """What no session reads is not part of the promise."""
    certificate = certify(two_sessions)
    weights = {
        key: weight.where(two_sessions.used()[key], weight + 1)
        for key, weight in two_sessions.weights.items()
    }
    verify(replace(two_sessions, weights=weights), certificate)


def test_a_learner_that_touches_masks_norms_or_classes_fails(two_sessions: MaskedNetwork) -> None:
    """Each part is named; a changed mask also changes which weights lie under it."""
    certificate = certify(two_sessions)
    first, second = two_sessions.sessions
    masks = {key: mask.clone() for key, mask in second.masks.items()}
    masks["head.weight"] ^= 1
    norms = {key: norm * 1.0001 + 1e-6 for key, norm in second.norms.items()}
    for broken, message in (
        (replace(second, masks=masks), "session 1: weights and masks changed"),
        (replace(second, norms=norms), "session 1: norms changed"),
        (replace(second, classes=2), "session 1: classes changed"),
    ):
        with pytest.raises(CertificateViolation, match=message):
            verify(replace(two_sessions, sessions=(first, broken)), certificate)


def test_a_lost_session_fails(two_sessions: MaskedNetwork) -> None:
    """A network that forgot a whole session."""
    with pytest.raises(CertificateViolation, match="covers 2 sessions, the network has 1"):
        verify(replace(two_sessions, sessions=two_sessions.sessions[:1]), certify(two_sessions))
