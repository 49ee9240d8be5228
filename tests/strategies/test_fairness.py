"""Strategies that weigh sites by their loss or contribution: by hand, against the published
algorithms and to their fixed points on a convex problem, and in a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.cases import mask, mask_case
from kit.convex import CENTRE, CURVATURE, Convex
from scipy import optimize

from fedshift import UserError, strategies
from fedshift.client.losses import dice_ce
from fedshift.client.model import Model
from fedshift.client.rules.base import Visit
from fedshift.client.rules.risk import training_loss
from fedshift.protocol.messages import Action, Arrays, Instruction, TensorInfo
from fedshift.sites.types import SiteData
from fedshift.strategies.afl import AFL, onto_simplex
from fedshift.strategies.base import Strategy
from fedshift.strategies.base.risk import ByRisk
from fedshift.strategies.fedavg import FedAvg
from fedshift.strategies.fedce import FedCE, cosines
from fedshift.strategies.feddg_ga import FedDGGA
from fedshift.strategies.qfedavg import QFedAvg

Call = Callable[..., Any]

WEIGHT, MEAN = "net/conv.weight", "net/norm.mean"
TENSORS = {
    WEIGHT: TensorInfo("net", "weight", "averaged", (2,), "float64"),
    MEAN: TensorInfo("net", "norm_buffer", "averaged", (2,), "float64"),
}
SITES = ("a", "b")


def model(first: float, second: float) -> Arrays:
    pair = np.array([first, second], np.float64)
    return {WEIGHT: pair, MEAN: pair.copy()}


ZERO = model(0, 0)
SENT = {"a": model(1, 4), "b": model(5, 0)}


def risks(**values: float) -> dict[str, dict[str, float]]:
    return {site: {"risk_received": value} for site, value in values.items()}


def loss(site: str, weight: np.ndarray) -> float:
    return 0.5 * CURVATURE[site] * float(np.sum((weight - CENTRE[site]) ** 2))


def gradient(site: str, weight: np.ndarray) -> np.ndarray:
    return CURVATURE[site] * (weight - CENTRE[site])


def descended(site: str, weight: np.ndarray, steps: int, rate: float) -> np.ndarray:
    for _ in range(steps):
        weight = weight - rate * gradient(site, weight)
    return weight


def worst(weight: np.ndarray) -> float:
    return max(loss(site, weight) for site in CENTRE)


# q-FedAvg.


def test_qfedavg_by_hand(begin: Call, fold: Call) -> None:
    strategy = begin(QFedAvg(q=2, lipschitz=0.5), SITES, TENSORS)
    found = fold(strategy, ZERO, SENT, metrics=risks(a=4, b=1))
    # d_a = -(0.5, 2), D_a = 16 d_a, h_a = 2 * 4 * 4.25 + 0.5 * 16 = 42;
    # d_b = -(2.5, 0), D_b = d_b, h_b = 2 * 6.25 + 0.5 = 13.
    np.testing.assert_allclose(found[WEIGHT], [10.5 / 55, 32 / 55], rtol=1e-14)
    np.testing.assert_allclose(found[MEAN], [21 / 17, 64 / 17], rtol=1e-14)
    assert strategy.outcome.sites["b"]["update_norm_net"] == 5


def test_qfedavg_by_examples_multiplies_both_sums(begin: Call, fold: Call) -> None:
    strategy = begin(QFedAvg(q=2, lipschitz=0.5, weighting="examples"), SITES, TENSORS)
    found = fold(strategy, ZERO, SENT, metrics=risks(a=4, b=1), examples={"a": 1, "b": 3})
    np.testing.assert_allclose(found[WEIGHT], [(8 + 7.5) / 81, 32 / 81], rtol=1e-14)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_qfedavg_with_q_0_is_fedavg_to_the_bit(begin: Call, fold: Call, weighting: Any) -> None:
    told = {"metrics": risks(a=0.3, b=0.7), "examples": {"a": 3, "b": 7}}
    fair = begin(QFedAvg(q=0, weighting=weighting), SITES, TENSORS)
    mean = begin(FedAvg(weighting=weighting), SITES, TENSORS)
    start = model(0.1, 0.7)
    found, expected = fold(fair, start, SENT, **told), fold(mean, start, SENT, **told)
    for name in TENSORS:
        assert found[name].tobytes() == expected[name].tobytes()


def test_qfedavg_takes_each_sub_network_as_a_vector_of_its_own(begin: Call, fold: Call) -> None:
    tensors = {f"{net}/w": TensorInfo(net, "weight", "averaged", (1,), "float64") for net in "xy"}
    sent = {"a": {"x/w": np.array([2.0]), "y/w": np.array([4.0])}, "b": {"x/w": np.array([6.0])}}
    strategy = begin(QFedAvg(q=1, lipschitz=0.25), SITES, tensors)
    found = fold(strategy, {n: np.zeros(1) for n in tensors}, sent, metrics=risks(a=2, b=3))
    # x: (2 * 2 + 3 * 6) / (2 + 3 + (4 + 36) / 4); y: 2 * 4 / (2 + 16 / 4).
    np.testing.assert_allclose(found["x/w"], [22 / 15], rtol=1e-14)
    np.testing.assert_allclose(found["y/w"], [8 / 6], rtol=1e-14)


def test_a_site_without_loss_does_no_harm(begin: Call, fold: Call) -> None:
    for q in (0.5, 1.0, 2.0):
        strategy = begin(QFedAvg(q=q), SITES, TENSORS)
        assert np.isfinite(fold(strategy, ZERO, SENT, metrics=risks(a=0, b=0))[WEIGHT]).all()


def algorithm_2(rounds: int, steps: int, rate: float, q: float, lipschitz: float) -> np.ndarray:
    """Li et al., Algorithm 2, with all sites in every round."""
    weight = np.zeros(2)
    for _ in range(rounds):
        deltas, bounds = np.zeros(2), 0.0
        for site in CENTRE:
            risk = loss(site, weight)
            d = lipschitz * (weight - descended(site, weight, steps, rate))
            deltas += risk**q * d
            bounds += q * risk ** (q - 1) * float(d @ d) + lipschitz * risk**q
        weight = weight - deltas / bounds
    return weight


@pytest.mark.usefixtures("convex_risk")
@pytest.mark.parametrize("q", [0.5, 2.0])
def test_qfedavg_follows_algorithm_2(q: float) -> None:
    found = Convex(QFedAvg(q=q, lipschitz=10), steps=4, rate=0.1).run(20)
    np.testing.assert_allclose(found, algorithm_2(20, 4, 0.1, q, 10), rtol=1e-12)


@pytest.mark.usefixtures("convex_risk")
def test_qfedavg_of_single_steps_reaches_the_minimiser_of_its_objective() -> None:
    q = 2.0
    found = Convex(QFedAvg(q=q, lipschitz=4), steps=1, rate=0.25).run(60)

    def objective(weight: np.ndarray) -> float:
        return sum(loss(site, weight) ** (q + 1) for site in CENTRE) / (q + 1)

    best = optimize.minimize(objective, np.zeros(2), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(found, best.x, atol=1e-6)


@pytest.mark.usefixtures("convex_risk")
def test_the_worst_loss_falls_with_q() -> None:
    ends = [worst(Convex(QFedAvg(q=q, lipschitz=4), steps=1, rate=0.25).run(60)) for q in (0, 1, 5)]
    # Those of the minimisers; the best that any model does is 3.4 (see AFL).
    np.testing.assert_allclose(ends, [4.5102, 3.7804, 3.4939], atol=1e-4)


# AFL.


def test_the_projection_is_the_closest_point_of_the_simplex() -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 5, 9):
        point = 2 * random.standard_normal(size)
        best = optimize.minimize(
            lambda x, point=point: np.sum((x - point) ** 2),
            np.full(size, 1 / size),
            jac=lambda x, point=point: 2 * (x - point),
            bounds=[(0, 1)] * size,
            constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        found = onto_simplex(point)
        assert found.min() >= 0
        assert found.sum() == pytest.approx(1, abs=1e-14)
        np.testing.assert_allclose(found, best.x, atol=1e-6)


def test_a_point_of_the_simplex_stays() -> None:
    np.testing.assert_allclose(onto_simplex(np.array([0.2, 0.5, 0.3])), [0.2, 0.5, 0.3], rtol=1e-14)


def test_afl_by_hand(begin: Call, fold: Call) -> None:
    strategy = begin(AFL(lr=0.1), SITES, TENSORS)
    told = {"metrics": risks(a=3, b=1), "examples": {"a": 99}}
    first = fold(strategy, ZERO, SENT, **told)
    second = fold(strategy, ZERO, SENT, **told, number=2)
    # (0.5, 0.5) + (0.3, 0.1) less 0.2 each; then (0.9, 0.5) less 0.2.
    for name in TENSORS:
        np.testing.assert_allclose(first[name], [3, 2], rtol=1e-14)
        np.testing.assert_allclose(second[name], [0.6 + 2.0, 2.4], rtol=1e-14)
    assert strategy.outcome.sites["a"]["lambda"] == pytest.approx(0.6, rel=1e-14)
    np.testing.assert_allclose(strategy.state["lambda"], [0.7, 0.3], rtol=1e-14)


def test_a_site_without_a_share_does_not_count(begin: Call, fold: Call) -> None:
    strategy = begin(AFL(lr=1), SITES, TENSORS)
    fold(strategy, ZERO, SENT, metrics=risks(a=1, b=3))
    np.testing.assert_array_equal(strategy.state["lambda"], [0, 1])
    found = fold(strategy, ZERO, SENT, metrics=risks(a=1, b=1), number=2)
    np.testing.assert_array_equal(found[WEIGHT], [5, 0])
    # Alone it leaves the model as it was, and gains a share.
    found = fold(strategy, ZERO, {"a": SENT["a"]}, metrics=risks(a=0.4), number=3)
    np.testing.assert_array_equal(found[WEIGHT], [0, 0])
    assert strategy.outcome.skipped == "the sites of this round have no share of the model"
    np.testing.assert_allclose(strategy.state["lambda"], [0.4, 0.6], rtol=1e-14)


def bisected(point: np.ndarray) -> np.ndarray:
    """The projection onto the simplex, by bisection."""
    fall = optimize.brentq(lambda t: np.maximum(point - t, 0).sum() - 1, -1, 50, xtol=1e-15)
    return np.maximum(point - fall, 0)


def stochastic_afl(rounds: int, rate: float, lr: float) -> np.ndarray:
    """Mohri et al., Stochastic-AFL with exact gradients."""
    weight, shares = np.zeros(2), np.full(3, 1 / 3)
    for _ in range(rounds):
        risk = np.array([loss(site, weight) for site in CENTRE])
        weight = weight - rate * shares @ np.array([gradient(site, weight) for site in CENTRE])
        shares = bisected(shares + lr * risk)
    return weight


@pytest.mark.usefixtures("convex_risk")
def test_afl_of_single_steps_is_the_published_algorithm() -> None:
    found = Convex(AFL(lr=0.02), steps=1, rate=0.05).run(40)
    np.testing.assert_allclose(found, stochastic_afl(40, 0.05, 0.02), rtol=1e-9)


@pytest.mark.usefixtures("convex_risk")
def test_afl_reaches_the_min_max_solution() -> None:
    federation = Convex(AFL(lr=0.02), steps=1, rate=0.2)
    found = federation.run(200)
    best = optimize.minimize(
        lambda x: x[2],
        np.array([0.0, 0.0, 50.0]),
        constraints=[
            {"type": "ineq", "fun": lambda x, site=site: x[2] - loss(site, x[:2])}
            for site in CENTRE
        ],
        method="SLSQP",
        options={"ftol": 1e-12},
    )
    np.testing.assert_allclose(found, best.x[:2], atol=1e-5)
    # All three lose 3.4 there, and these shares of their gradients add up to nothing.
    np.testing.assert_allclose([loss(site, found) for site in CENTRE], [3.4] * 3, atol=1e-4)
    np.testing.assert_allclose(federation.strategy.state["lambda"], [0.4, 0.2, 0.4], atol=1e-4)


# FedDG-GA.


def rounds_of(strategy: Strategy, rounds: int) -> Strategy:
    """The strategy in a run of so many rounds."""
    strategy.instruction = strategy.instruction.but(rounds=rounds)
    return strategy


def gaps(**pairs: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {
        site: {"risk_received": received, "risk_trained": trained}
        for site, (received, trained) in pairs.items()
    }


def test_feddg_ga_by_hand(begin: Call, fold: Call) -> None:
    strategy = rounds_of(begin(FedDGGA(step_size=0.2), SITES, TENSORS), 4)
    first = fold(strategy, ZERO, SENT, metrics=gaps(a=(9, 1), b=(9, 1.5)), examples={"a": 7})
    np.testing.assert_allclose(first[WEIGHT], [3, 2], rtol=1e-14)
    # Gaps of 2 and 0.5; the largest deviation moves by (1 - 1 / 4) 0.2 / 2.
    told = gaps(a=(3, 0.5), b=(2, 0.5))
    second = fold(strategy, ZERO, SENT, metrics=told, number=2)
    for name in TENSORS:
        np.testing.assert_allclose(second[name], [0.575 + 5 * 0.425, 4 * 0.575], rtol=1e-14)
    assert strategy.outcome.sites["a"]["gap"] == 2
    assert strategy.outcome.sites["a"]["share"] == pytest.approx(0.575, rel=1e-14)
    # Now b's is the larger one, of 1 and 2, by (1 - 2 / 4) 0.2 / 2.
    third = fold(strategy, ZERO, SENT, metrics=gaps(a=(1.5, 1), b=(2.5, 1)), number=3)
    np.testing.assert_allclose(third[WEIGHT], [0.525 + 5 * 0.475, 4 * 0.525], rtol=1e-14)


def test_equal_gaps_leave_the_shares(begin: Call, fold: Call) -> None:
    strategy = rounds_of(begin(FedDGGA(step_size=1), SITES, TENSORS), 4)
    for number in (1, 2):
        fold(strategy, ZERO, SENT, metrics=gaps(a=(2, 1), b=(3, 2)), number=number)
    np.testing.assert_allclose(strategy.state["shares"], [0.5, 0.5], rtol=1e-14)


def test_shares_are_cut_at_0_and_absent_sites_keep_theirs(begin: Call, fold: Call) -> None:
    sites = ("a", "b", "c", "d")
    sent = {site: model(k, k) for k, site in enumerate(sites)}
    strategy = rounds_of(begin(FedDGGA(step_size=1), sites, TENSORS), 1000)
    quiet = gaps(**dict.fromkeys(sites, (1.0, 1.0)))
    fold(strategy, ZERO, sent, metrics=quiet)
    without = {site: sent[site] for site in "abc"}
    told = gaps(a=(1, 1), b=(2, 1), c=(3, 1))
    for number in (2, 3):
        found = fold(strategy, ZERO, without, metrics=told, number=number)
    # a, b and c move by nearly (-1, 0, 1) / 4, to (0, 1, 2) / 4; then a has none left to lose, and
    # (0, 1, 3) / 4 is cut to the 3 / 4 that they have together.
    np.testing.assert_allclose(strategy.state["shares"], [0, 3 / 16, 9 / 16, 0.25], atol=2e-3)
    assert strategy.state["shares"].sum() == pytest.approx(1, rel=1e-14)
    np.testing.assert_allclose(found[WEIGHT], [7 / 4, 7 / 4], rtol=5e-3)


def test_a_sub_network_of_sites_without_a_share_is_their_mean(begin: Call, fold: Call) -> None:
    tensors = {f"{net}/w": TensorInfo(net, "weight", "averaged", (1,), "float64") for net in "xy"}
    strategy = rounds_of(begin(FedDGGA(), ("a", "b", "c"), tensors), 4)
    strategy.state["shares"] = np.array([0.0, 0.0, 1.0])
    sent = {"a": {"x/w": np.array([2.0])}, "b": {"x/w": np.array([6.0])}}
    sent["c"] = {"y/w": np.array([5.0])}
    told = gaps(a=(1, 1), b=(1, 1), c=(1, 1))
    found = fold(strategy, {n: np.zeros(1) for n in tensors}, sent, metrics=told)
    assert (found["x/w"], found["y/w"]) == (4, 5)


@pytest.mark.usefixtures("convex_risk")
def test_feddg_ga_follows_its_algorithm() -> None:
    names, total, d, steps, rate = sorted(CENTRE), 12, 0.5, 4, 0.1
    federation = Convex(FedDGGA(step_size=d), steps=steps, rate=rate)
    rounds_of(federation.strategy, total)
    found = federation.run(total)
    weight, shares = np.zeros(2), np.full(3, 1 / 3)
    for number in range(1, total + 1):
        own = {site: descended(site, weight, steps, rate) for site in names}
        weight = sum(share * own[site] for share, site in zip(shares, names, strict=True))
        gap = np.array([loss(site, weight) - loss(site, own[site]) for site in names])
        step = (1 - number / total) * d / 3
        shares = shares + step * (gap - gap.mean()) / np.max(np.abs(gap - gap.mean()))
        shares = np.clip(shares, 0, 1) / np.clip(shares, 0, 1).sum()
    np.testing.assert_allclose(found, weight, rtol=1e-11)


@pytest.mark.usefixtures("convex_risk")
def test_feddg_ga_makes_the_gaps_more_alike_than_equal_shares() -> None:
    def spread(strategy: Strategy) -> float:
        federation = Convex(strategy, steps=10, rate=0.3)
        rounds_of(strategy, 40)
        weight = federation.run(40)
        return float(
            np.ptp(
                [
                    loss(site, weight) - loss(site, descended(site, weight, 10, 0.3))
                    for site in CENTRE
                ]
            )
        )

    assert spread(FedDGGA(step_size=0.5)) < 0.5 * spread(FedAvg(weighting="uniform"))


# FedCE.

THREE = {"a": model(1, 0), "b": model(1, 1), "c": model(0, 2)}
COSINES = np.array([1 / 10**0.5, 3 / 10**0.5, 1 / 5**0.5])
"""Of (1, 0) with (1, 3), of (1, 1) with (1, 2), of (0, 2) with (2, 1)."""
ERRORS = np.array([1.0, 2.0, 4.0])
WITHOUT = {site: {"risk_without": error} for site, error in zip(THREE, ERRORS, strict=True)}


@pytest.mark.parametrize("form", ["product", "sum"])
def test_fedce_by_hand(begin: Call, fold: Call, form: Any) -> None:
    strategy = begin(FedCE(form=form, momentum=0.25), tuple(THREE), TENSORS)
    found = fold(strategy, ZERO, THREE, metrics=WITHOUT, examples={"a": 50})
    direction = 1 - COSINES
    if form == "product":
        contribution = direction * ERRORS
    else:
        contribution = direction / direction.sum() + ERRORS / 7
    shares = 0.25 / 3 + 0.75 * contribution / contribution.sum()
    for name in TENSORS:
        expected = sum(share * THREE[site][name] for share, site in zip(shares, THREE, strict=True))
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)
    assert strategy.outcome.sites["b"]["direction"] == pytest.approx(direction[1], rel=1e-12)
    # The next round tells the sites what part they had.
    parts = strategy.rules()["leave_one_out"]["parts"]["net"]
    np.testing.assert_allclose([parts[site] for site in THREE], shares, rtol=1e-12)


def test_cosines_are_with_the_mean_of_the_others_by_shares() -> None:
    random = np.random.default_rng(3)
    changes, shares = random.standard_normal((4, 7)), np.array([0.1, 0.0, 0.6, 0.3])
    for k, found in enumerate(cosines(changes @ changes.T, shares)):
        rest = sum(shares[j] * changes[j] for j in range(4) if j != k)
        expected = changes[k] @ rest / np.linalg.norm(changes[k]) / np.linalg.norm(rest)
        assert found == pytest.approx(expected, rel=1e-12)
    still = np.array([[0.0, 0.0], [0.0, 4.0]])
    np.testing.assert_array_equal(cosines(still, np.array([0.5, 0.5])), [0, 0])


def test_a_site_counts_with_all_its_sub_networks(begin: Call, fold: Call) -> None:
    tensors = {f"{net}/w": TensorInfo(net, "weight", "averaged", (1,), "float64") for net in "xy"}
    sent = {
        "a": {"x/w": np.array([3.0]), "y/w": np.array([4.0])},
        "b": {"x/w": np.array([1.0])},
    }
    strategy = begin(FedCE(momentum=0), SITES, tensors)
    fold(strategy, {n: np.zeros(1) for n in tensors}, sent, metrics=WITHOUT)
    # (3, 4) and (1, 0): the cosine is 0.6 for both; the errors are 1 and 2.
    assert strategy.outcome.sites["a"]["direction"] == pytest.approx(0.4, rel=1e-12)
    np.testing.assert_allclose(strategy.state["shares"], [1 / 3, 2 / 3], rtol=1e-12)
    parts = strategy.rules()["leave_one_out"]["parts"]
    assert parts["y"] == {"a": 1.0}
    assert parts["x"] == pytest.approx({"a": 1 / 3, "b": 2 / 3}, rel=1e-12)


def others(federation: Convex, site: str, parts: dict[str, float], start: np.ndarray) -> np.ndarray:
    """The average of the last round's updates, from ``start``, without the site's."""
    names = [name for name in parts if name != site]
    ends = [descended(name, start, federation.steps, federation.rate) for name in names]
    return np.average(ends, axis=0, weights=[parts[name] for name in names])


@pytest.mark.usefixtures("convex_risk")
def test_the_model_without_a_site_is_the_average_of_the_others() -> None:
    federation = Convex(FedCE())
    federation.run(3)
    before = federation.model["net/w"].copy()
    federation.run(1)
    parts = federation.strategy.rules()["leave_one_out"]["parts"]["net"]
    federation.run(1)
    for site in CENTRE:
        expected = loss(site, others(federation, site, parts, before))
        assert federation.metrics[site]["risk_without"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("convex_risk")
def test_a_site_that_had_no_part_measures_the_model_itself() -> None:
    federation = Convex(FedCE(fraction=0.6))
    federation.run(1)
    absent = sorted(CENTRE.keys() - federation.strategy.outcome.sites.keys())
    federation.strategy.fraction = 1.0
    weight = federation.model["net/w"].copy()
    federation.run(1)
    (site,) = absent
    assert federation.metrics[site]["risk_without"] == pytest.approx(loss(site, weight), rel=1e-12)
    others_ = sorted(CENTRE.keys() - {site})
    assert federation.metrics[others_[0]]["risk_without"] != pytest.approx(
        loss(others_[0], weight), rel=1e-3
    )


@pytest.mark.usefixtures("convex_risk")
def test_an_odd_site_gets_the_largest_share() -> None:
    centres = {"a": np.array([2.0, 2.0]), "b": np.array([-1.0, 2.5]), "c": np.array([2.1, 2.0])}
    federation = Convex(FedCE(), centres=centres)
    federation.run(4)
    a, b, c = federation.strategy.state["shares"]
    assert b > max(a, c)


# What they have in common.

RISKS = [QFedAvg, AFL, FedDGGA, FedCE]
ALL = {"risk_received": 2.0, "risk_trained": 1.0, "risk_without": 3.0}


@pytest.mark.parametrize("kind", RISKS)
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -1.0, 101.0])
def test_an_update_without_its_risk_is_rejected(
    begin: Call, fold: Call, kind: type[ByRisk], value: float | None
) -> None:
    for name in kind.told:
        bad = {key: risk for key, risk in ALL.items() if key != name}
        if value is not None:
            bad[name] = value
        strategy = rounds_of(begin(kind(), SITES, TENSORS), 2)
        found = fold(strategy, ZERO, SENT, metrics={"a": ALL, "b": bad})
        why = f"sent no {name} between 0 and 100, by which it would count"
        assert strategy.outcome.rejected == {"b": why}
        np.testing.assert_array_equal(found[MEAN], [1, 4])


@pytest.mark.parametrize("kind", RISKS)
def test_a_site_without_labels_is_refused(kind: type[Strategy]) -> None:
    instruction = Instruction(action=Action.NAME, seed=0, steps=1, task={"unlabelled": ["b"]})
    with pytest.raises(UserError, match=r"weighs sites by their loss .* and b has none"):
        kind().begin({"a": 2, "b": 3}, TENSORS, instruction)


@pytest.mark.parametrize("kind", RISKS)
def test_balanced_networks_are_left_to_the_base(
    begin: Call, fold: Call, kind: type[Strategy]
) -> None:
    tensors = {WEIGHT: TensorInfo("net", "weight", "balanced", (2,), "float64", ("",))}
    sent = {site: {WEIGHT: arrays[WEIGHT]} for site, arrays in SENT.items()}
    strategy = begin(kind(), SITES, tensors)
    found = fold(strategy, {WEIGHT: np.zeros(2)}, sent, metrics={"a": ALL, "b": ALL})
    np.testing.assert_array_equal(found[WEIGHT], [3, 2])


@pytest.mark.usefixtures("convex_risk")
@pytest.mark.parametrize("kind", RISKS)
def test_the_state_is_all_that_a_resumed_run_needs(kind: type[Strategy]) -> None:
    def begun() -> Convex:
        federation = Convex(kind(fraction=0.6))
        rounds_of(federation.strategy, 6)
        return federation

    whole, cut, again = begun(), begun(), begun()
    whole.run(6)
    cut.run(3)
    again.strategy.state = {name: array.copy() for name, array in cut.strategy.state.items()}
    again.model, again.memory, again.rounds = cut.model, cut.memory, cut.rounds
    again.run(3)
    assert again.model["net/w"].tobytes() == whole.model["net/w"].tobytes()


# With images.


def site_of(slices: int) -> SiteData:
    """A site with one training volume of so many slices, each with another image, all but one
    labelled."""
    random = np.random.default_rng(slices)
    image = random.random((slices + 1, 16, 16), dtype=np.float32)
    label = (image > 0.7).astype(np.uint8)
    labelled = np.arange(slices + 1) > 0
    case = mask_case(image, label, labelled=labelled)
    return SiteData("a", "train", ("s",), {"train": (case,), "val": (), "test": ()})


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_risk_is_the_mean_loss_on_the_labelled_training_slices(norm: str) -> None:
    method = {"name": "supervised", "width": 4, "depth": 2, "norm": norm}
    network = Model(method, {"name": "segmentation", "parts": ["s"]}, torch.device("cpu"), seed=0)

    def measured(site: SiteData, slices: int | None = None) -> Any:
        instruction = Instruction(action=Action.FIT, seed=0)
        visit = Visit(instruction, site, network, torch.device("cpu"))
        return training_loss(visit, slices)

    def expected(site: SiteData, chosen: Sequence[int]) -> float:
        case = site.splits["train"][0]
        net = network.nets["segmenter"].eval()
        with torch.no_grad():
            logits = net(torch.from_numpy(case.image[chosen]))
        return float(dice_ce(logits, torch.from_numpy(mask(case)[chosen])))

    few, many = site_of(8), site_of(16)
    assert measured(few) == pytest.approx(expected(few, range(1, 9)), rel=1e-5)
    # Two batches of eight: cross-entropy is the mean of all, soft Dice of the batches.
    assert measured(many) == pytest.approx(expected(many, range(1, 17)), rel=1e-2)
    assert measured(many) == measured(many)
    # Of one drawn slice: its own loss, whichever it is.
    singles = [expected(many, [k]) for k in range(1, 17)]
    assert min(abs(single - measured(many, slices=1)) for single in singles) < 1e-5
    assert measured(site_of(0)) is None


STYLE = (
    "method=style_transfer",
    "method.translator_width=4",
    "method.pretraining_rounds=0",
    "method.translator_rounds=1",
)
QUIET = ("baselines=[]", "evaluated=[global]", "validate_every=0")


def line(run: Path, number: int) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run / "rounds.jsonl").read_text().splitlines()[number - 1])
    return loaded


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("qfedavg", STYLE),
        ("afl", ("method=supervised",)),
        ("feddg_ga", STYLE),
        ("fedce", ("method=supervised",)),
    ],
)
def test_they_run_and_go_on_to_the_same_bytes(
    simulate_undrawn: Callable[..., Path],
    cut_short: Callable[..., Path],
    tmp_path: Path,
    name: str,
    method: tuple[str, ...],
) -> None:
    overrides = (f"strategy={name}", *method, *QUIET)
    run = simulate_undrawn(tmp_path / "run", *overrides)
    told = strategies.build({"name": name}).told  # type: ignore[attr-defined]
    for number in (1, 2):
        found = line(run, number)
        assert not (found["failed"] or found["rejected"] or found["skipped"])
        for site in found["sites"].values():
            assert all(site[risk] > 0 for risk in told)
    cut = cut_short(run, tmp_path / "cut")
    simulate_undrawn(cut, *overrides, "resume=true")
    end = "checkpoints/round_0002.safetensors"
    assert (cut / end).read_bytes() == (run / end).read_bytes()
