"""Capacity: what is free, how long it lasts, and what happens when it is used up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_engine.errors import CapacityExhausted
from cl_engine.supermask.capacity import admit, capacity, session_settings, sessions_left
from cl_engine.supermask.network import MaskedNetwork
from cl_engine.supermask.settings import overall_density
from tests.support.supermasks import perceptron, quick, trained


def test_the_free_share_is_counted() -> None:
    """Everything at first, 80 % after a session of density 0.2, and less after each further one."""
    network = MaskedNetwork.create(perceptron, seed=0)
    assert capacity(network, quick()).free_share == 1
    one = trained(network, 1, quick(epochs=2))
    report = capacity(one, quick())
    assert report.sessions == 1
    assert report.free_share == pytest.approx(0.8, abs=0.01)
    assert set(report.free_by_layer) == set(network.weights)
    two = capacity(trained(one, 1, quick(epochs=2)), quick())
    assert 0.6 <= two.free_share < report.free_share
    assert two.sessions_left < report.sessions_left


def test_the_weight_phase_shortens_with_what_is_free() -> None:
    """Half of 20 epochs while all is free, 8 of them at 80 %; without the option always half."""
    network = MaskedNetwork.create(perceptron, seed=0)
    one = trained(network, 1, quick(epochs=2))
    for shorten, expected in ((False, [10, 10]), (True, [10, 8])):
        settings = quick(epochs=20, shorten_weight_phase=shorten)
        found = [session_settings(n, settings) for n in (network, one)]
        assert [s.weight_epochs for s in found] == expected
        assert [s.mask_epochs + s.weight_epochs for s in found] == [20, 20]


@pytest.mark.parametrize("method", ["supsup", "ssnet"])
def test_only_exssnet_shortens_its_weight_phase(method: str) -> None:
    """The others have none, or train weights that are not free."""
    with pytest.raises(ValueError, match=f"shorten_weight_phase is on but method is '{method}'"):
        quick(method=method, shorten_weight_phase=True)


@pytest.mark.parametrize(
    ("free", "density", "least", "expected"),
    [
        # 1, 0.5 and 0.25 are at least 0.2, 0.125 is not.
        (1.0, 0.5, 0.2, 3),
        (1.0, 1.0, 0.1, 1),
        (0.1, 0.5, 0.2, 0),
    ],
)
def test_sessions_left_worked_by_hand(free: float, density: float, least: float, expected: int) -> None:
    """Each session leaves (1 - density) of what was free."""
    assert sessions_left(free, density, least) == expected


@given(st.floats(0.01, 1), st.floats(0.01, 0.99), st.floats(0.0001, 0.5))
def test_sessions_left_equals_counting_them(free: float, density: float, least: float) -> None:
    """The closed form is the loop, up to one where the limit is met exactly."""
    counted, share = 0, free
    while share >= least:
        counted += 1
        share *= 1 - density
    assert abs(sessions_left(free, density, least) - counted) <= 1


def test_a_full_network_refuses_the_next_session() -> None:
    """With density 1 the first session takes everything; the error says what to do."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 1, quick(density=1.0, epochs=2))
    assert capacity(network, quick()).sessions_left == 0
    with pytest.raises(CapacityExhausted, match=r"session 1 finds 0.0000% .* wider network"):
        trained(network, 1, quick(density=1.0))


def test_a_session_below_the_limit_is_refused() -> None:
    """80 % are free, 90 % are demanded."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 1, quick(epochs=2))
    with pytest.raises(CapacityExhausted, match="least_free is 90"):
        admit(network, quick(least_free=0.9))


@pytest.mark.parametrize("method", ["supsup", "ssnet"])
def test_methods_without_weights_of_their_own_never_run_out(method: str) -> None:
    """SupSup needs no free weight, SSNeT takes others'."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 1, quick(density=1.0, epochs=2))
    assert set(admit(network, quick(method=method)).values()) == {0.2}


def test_densify_makes_up_for_what_is_taken() -> None:
    """Free x density stays what it was at the limit: own weights of 0.9 * 0.2 of the network."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 1, quick(epochs=2))
    free = capacity(network, quick()).free_share
    densities = admit(network, quick(least_free=0.9, when_full="densify"))
    assert overall_density(network, densities) * free == pytest.approx(0.9 * 0.2)


def test_densify_stops_at_its_limit() -> None:
    """The mask may not grow beyond max_density."""
    network = trained(MaskedNetwork.create(perceptron, seed=0), 1, quick(epochs=2))
    with pytest.raises(CapacityExhausted, match=r"max_density is 0.21"):
        admit(network, quick(least_free=0.9, when_full="densify", max_density=0.21))
    with pytest.raises(ValueError, match="least_free is 0"):
        quick(when_full="densify")
