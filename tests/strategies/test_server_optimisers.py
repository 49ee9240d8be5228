"""The coordinator's optimisers: by hand, against the published algorithms, and to their fixed
points on a convex problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedshift.protocol.messages import Arrays, TensorInfo
from fedshift.strategies.base import Strategy
from fedshift.strategies.fedadagrad import FedAdagrad
from fedshift.strategies.fedadam import FedAdam
from fedshift.strategies.fedavg import FedAvg
from fedshift.strategies.fedavgm import FedAvgM
from fedshift.strategies.fednova import FedNova
from fedshift.strategies.fedyogi import FedYogi

Call = Callable[..., Any]

WEIGHT, MEAN, COUNT = "net/conv.weight", "net/norm.mean", "net/norm.count"
TENSORS = {
    WEIGHT: TensorInfo("net", "weight", "averaged", (2,), "float64"),
    MEAN: TensorInfo("net", "norm_buffer", "averaged", (2,), "float64"),
    COUNT: TensorInfo("net", "norm_buffer", "averaged", (), "int64"),
}
SITES = ("a", "b")


def model(first: float, second: float, count: int = 0) -> Arrays:
    pair = np.array([first, second], np.float64)
    return {WEIGHT: pair, MEAN: pair.copy(), COUNT: np.array(count)}


SENT = {"a": model(1, 4, 4), "b": model(5, 0, 8)}
EXAMPLES = {"a": 3, "b": 1}
# Their mean: (3 * 1 + 5) / 4 = 2, (3 * 4 + 0) / 4 = 3 and a count of 5; the change from 0: 2, 3.


def twice(begin: Call, fold: Call, strategy: Strategy) -> tuple[Arrays, Arrays]:
    """Two rounds in which the sites send the same; the models after each."""
    begin(strategy, SITES, TENSORS)
    first = fold(strategy, model(0, 0), SENT, examples=EXAMPLES)
    return first, fold(strategy, first, SENT, examples=EXAMPLES, number=2)


def test_fedavgm_by_hand(begin: Call, fold: Call) -> None:
    first, second = twice(begin, fold, FedAvgM(lr=0.5, momentum=0.9))
    # v = -(2, 3); w = 0.5 (2, 3). Then v = 0.9 v + (1, 1.5) - (2, 3) = -(2.8, 4.2).
    np.testing.assert_allclose(first[WEIGHT], [1, 1.5], rtol=1e-15)
    np.testing.assert_allclose(second[WEIGHT], [1 + 1.4, 1.5 + 2.1], rtol=1e-15)


def test_fedavgm_without_momentum_is_fedavg(begin: Call, fold: Call) -> None:
    first, second = twice(begin, fold, FedAvgM(lr=1.0, momentum=0.0))
    np.testing.assert_allclose(first[WEIGHT], [2, 3], rtol=1e-15)
    np.testing.assert_allclose(second[WEIGHT], [2, 3], rtol=1e-15)


def test_fedadam_by_hand(begin: Call, fold: Call) -> None:
    first, _ = twice(begin, fold, FedAdam(lr=0.1, beta1=0.9, beta2=0.75, tau=0.2))
    # m = 0.1 (2, 3); v = 0.75 * 0.04 + 0.25 (4, 9) = (1.03, 2.28).
    expected = [0.1 * 0.2 / (1.03**0.5 + 0.2), 0.1 * 0.3 / (2.28**0.5 + 0.2)]
    np.testing.assert_allclose(first[WEIGHT], expected, rtol=1e-14)


def test_fedyogi_by_hand(begin: Call, fold: Call) -> None:
    first, _ = twice(begin, fold, FedYogi(lr=0.1, beta1=0.9, beta2=0.75, tau=0.2))
    # v = 0.04 - 0.25 (4, 9) * -1 = (1.04, 2.29): the mean squares are above v.
    expected = [0.1 * 0.2 / (1.04**0.5 + 0.2), 0.1 * 0.3 / (2.29**0.5 + 0.2)]
    np.testing.assert_allclose(first[WEIGHT], expected, rtol=1e-14)


def test_fedadagrad_by_hand(begin: Call, fold: Call) -> None:
    first, second = twice(begin, fold, FedAdagrad(lr=0.1, tau=0.2))
    # v = 0.04 + (4, 9), without momentum.
    expected = [0.1 * 2 / (4.04**0.5 + 0.2), 0.1 * 3 / (9.04**0.5 + 0.2)]
    np.testing.assert_allclose(first[WEIGHT], expected, rtol=1e-14)
    change = 2 - expected[0]
    again = expected[0] + 0.1 * change / ((4.04 + change**2) ** 0.5 + 0.2)
    assert second[WEIGHT][0] == pytest.approx(again, rel=1e-14)


OPTIMISERS = [FedAvgM, FedAdagrad, FedAdam, FedYogi]


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_running_statistics_and_counters_are_averaged(
    begin: Call, fold: Call, kind: type[Strategy]
) -> None:
    for found in twice(begin, fold, kind()):
        np.testing.assert_array_equal(found[MEAN], [2, 3])
        assert found[COUNT] == 5
        assert found[COUNT].dtype == np.int64


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_balanced_networks_are_left_to_the_base(
    begin: Call, fold: Call, kind: type[Strategy]
) -> None:
    tensors = {WEIGHT: TensorInfo("net", "weight", "balanced", (2,), "float64", ("",))}
    sent = {site: {WEIGHT: arrays[WEIGHT]} for site, arrays in SENT.items()}
    strategy = begin(kind(), SITES, tensors)
    found = fold(strategy, {WEIGHT: np.zeros(2)}, sent, examples=EXAMPLES)
    np.testing.assert_array_equal(found[WEIGHT], [2, 3])
    assert strategy.state == {}


# A convex problem: site k minimises a_k / 2 |w - c_k|^2 by gradient descent and has n_k examples.

CURVATURE = {"a": 1.0, "b": 2.0, "c": 0.5}
CENTRE = {"a": np.array([1.0, -1.0]), "b": np.array([0.0, 3.0]), "c": np.array([-4.0, 2.0])}
COUNTED = {"a": 10, "b": 30, "c": 20}
CONVEX = {"net/w": TensorInfo("net", "weight", "averaged", (2,), "float64")}
PULL = sum(COUNTED[site] * CURVATURE[site] for site in CENTRE)
MINIMISER = sum(COUNTED[site] * CURVATURE[site] * CENTRE[site] for site in CENTRE) / PULL


def descend(weight: np.ndarray, site: str, steps: int, rate: float) -> np.ndarray:
    for _ in range(steps):
        weight = weight - rate * CURVATURE[site] * (weight - CENTRE[site])
    return weight


def federate(
    begin: Call,
    fold: Call,
    strategy: Strategy,
    rounds: int,
    steps: dict[str, int],
    rate: float,
) -> np.ndarray:
    begin(strategy, sorted(CENTRE), CONVEX, steps=4)
    weight = np.zeros(2)
    told = {site: {"steps": float(count)} for site, count in steps.items()}
    for number in range(1, rounds + 1):
        sent = {site: {"net/w": descend(weight, site, steps[site], rate)} for site in CENTRE}
        found = fold(
            strategy, {"net/w": weight}, sent, examples=COUNTED, metrics=told, number=number
        )
        weight = found["net/w"]
    return weight


def algorithm_2(
    second: Callable[[float, float], float],
    rounds: int,
    steps: int,
    rate: float,
    lr: float,
    beta1: float,
    tau: float,
) -> np.ndarray:
    """Reddi et al., Algorithm 2, number by number."""
    weight, m, v = [0.0, 0.0], [0.0, 0.0], [tau**2, tau**2]
    total = sum(COUNTED.values())
    for _ in range(rounds):
        change = [0.0, 0.0]
        for site in CENTRE:
            local = list(weight)
            for _ in range(steps):
                for i in (0, 1):
                    local[i] -= rate * CURVATURE[site] * (local[i] - float(CENTRE[site][i]))
            for i in (0, 1):
                change[i] += COUNTED[site] / total * (local[i] - weight[i])
        for i in (0, 1):
            m[i] = beta1 * m[i] + (1 - beta1) * change[i]
            v[i] = second(v[i], change[i])
            weight[i] += lr * m[i] / (v[i] ** 0.5 + tau)
    return np.array(weight)


@pytest.mark.parametrize(
    ("strategy", "second"),
    [
        (FedAdagrad(lr=0.3, beta1=0.2, tau=1e-2), lambda v, d: v + d * d),
        (FedAdam(lr=0.3, beta1=0.2, beta2=0.8, tau=1e-2), lambda v, d: 0.8 * v + 0.2 * d * d),
        (
            FedYogi(lr=0.3, beta1=0.2, beta2=0.8, tau=1e-2),
            lambda v, d: v - 0.2 * d * d * ((v > d * d) - (v < d * d)),
        ),
    ],
)
def test_adaptive_optimisers_follow_algorithm_2(
    begin: Call, fold: Call, strategy: Strategy, second: Callable[[float, float], float]
) -> None:
    found = federate(begin, fold, strategy, 25, dict.fromkeys(CENTRE, 4), 0.1)
    expected = algorithm_2(second, 25, 4, 0.1, lr=0.3, beta1=0.2, tau=1e-2)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "strategy",
    [
        FedAvgM(lr=0.3, momentum=0.7),
        FedAdagrad(lr=1.0),
        FedAdam(lr=0.1, tau=0.1),
        FedYogi(lr=0.1, tau=0.1),
    ],
)
def test_optimisers_of_single_steps_reach_the_weighted_minimiser(
    begin: Call, fold: Call, strategy: Strategy
) -> None:
    found = federate(begin, fold, strategy, 300, dict.fromkeys(CENTRE, 1), 0.3)
    np.testing.assert_allclose(found, MINIMISER, atol=1e-6)


UNEQUAL = {"a": 8, "b": 4, "c": 1}


def test_fednova_is_fedavg_to_the_bit_when_sites_take_the_same_steps(
    begin: Call, fold: Call
) -> None:
    for steps in (4, 7):  # as many as the round has, and other numbers
        same = dict.fromkeys(CENTRE, steps)
        nova = federate(begin, fold, FedNova(), 5, same, 0.1)
        mean = federate(begin, fold, FedAvg(), 5, same, 0.1)
        if steps == 4:
            assert nova.tobytes() == mean.tobytes()
        np.testing.assert_allclose(nova, mean, rtol=1e-13)


def test_fednova_follows_its_equation(begin: Call, fold: Call) -> None:
    weight, total = np.zeros(2), sum(COUNTED.values())
    for _ in range(6):
        effective = sum(COUNTED[site] / total * UNEQUAL[site] for site in CENTRE)
        step = np.zeros(2)
        for site in CENTRE:
            change = descend(weight, site, UNEQUAL[site], 0.1) - weight
            step += COUNTED[site] / total * change / UNEQUAL[site]
        weight = weight + effective * step
    found = federate(begin, fold, FedNova(), 6, UNEQUAL, 0.1)
    np.testing.assert_allclose(found, weight, rtol=1e-12)


def test_unequal_steps_pull_fedavg_to_the_busy_site_and_fednova_not(
    begin: Call, fold: Call
) -> None:
    nova = federate(begin, fold, FedNova(), 400, UNEQUAL, 0.01)
    mean = federate(begin, fold, FedAvg(), 400, UNEQUAL, 0.01)
    # The rest is the drift within a round, which falls with the rate.
    assert np.linalg.norm(nova - MINIMISER) < 0.05
    assert np.linalg.norm(mean - MINIMISER) > 0.5


def test_steps_that_mixed_precision_left_out_are_not_counted(begin: Call, fold: Call) -> None:
    strategy = begin(FedNova(), SITES, TENSORS, steps=4)
    found = fold(strategy, model(0, 0), SENT, metrics={"a": {"nonfinite_steps": 2.0}})
    # tau = 2 and 4; d = (1, 4) / 2 and (5, 0) / 4; tau_eff = 3.
    np.testing.assert_allclose(found[WEIGHT], [3 * (0.5 + 1.25) / 2, 3 * 2 / 2], rtol=1e-15)
    np.testing.assert_array_equal(found[MEAN], [3, 2])
    assert found[COUNT] == 6


@pytest.mark.parametrize(
    "told",
    [
        {"steps": float("nan")},
        {"steps": 1e6},
        {"steps": -1.0},
        {"nonfinite_steps": -1e300},
        {"steps": 2.0, "nonfinite_steps": 3.0},
    ],
)
def test_steps_that_nobody_takes_are_refused(
    begin: Call, fold: Call, told: dict[str, float]
) -> None:
    strategy = begin(FedNova(), SITES, TENSORS, steps=4)
    found = fold(strategy, model(0, 0), SENT, metrics={"a": told})
    np.testing.assert_array_equal(found[WEIGHT], SENT["b"][WEIGHT])
    assert "steps of no possible number" in strategy.outcome.rejected["a"]


# Resume.


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_the_state_is_all_that_a_resumed_run_needs(
    begin: Call, fold: Call, kind: type[Strategy]
) -> None:
    whole, cut = begin(kind(), SITES, TENSORS), begin(kind(), SITES, TENSORS)
    at = back = model(0, 0)
    for number in range(1, 5):
        if number == 3:
            kept = {name: array.copy() for name, array in cut.state.items()}
            cut = begin(kind(), SITES, TENSORS)
            cut.state = kept
        at = fold(whole, at, SENT, number=number)
        back = fold(cut, back, SENT, number=number)
    assert at[WEIGHT].tobytes() == back[WEIGHT].tobytes()
    assert not np.allclose(at[WEIGHT], fold(begin(kind(), SITES, TENSORS), at, SENT)[WEIGHT])
