"""Strategies that say who trains when: the model that goes from site to site, and the head that
changes every round."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.convex import CENTRE, CURVATURE, Convex

from fedshift import UserError
from fedshift.protocol.flower import ConfigRecord
from fedshift.protocol.messages import TensorInfo, pack_arrays
from fedshift.protocol.storage import read_tensors
from fedshift.strategies.base import Strategy
from fedshift.strategies.cyclic import Cyclic
from fedshift.strategies.fedavg import FedAvg
from fedshift.strategies.swarm import Swarm

Call = Callable[..., Any]

WEIGHT = "net/w"
TENSORS = {WEIGHT: TensorInfo("net", "weight", "averaged", (1,), "float64")}
SITES = ("a", "b", "c")


def one(value: float) -> dict[str, np.ndarray]:
    return {WEIGHT: np.array([value], np.float64)}


# Cyclic weight transfer.


def test_the_model_goes_from_site_to_site(begin: Call, fold: Call) -> None:
    strategy = begin(Cyclic(), SITES, TENSORS)
    model = one(0)
    for number, site in enumerate("abcab", start=1):
        assert strategy.select(number) == [site]
        model = fold(strategy, model, {site: one(10.3 * number)}, number=number)
        assert model[WEIGHT][0] == 10.3 * number


def test_a_random_order_visits_every_site_once_a_cycle(begin: Call) -> None:
    strategy = begin(Cyclic(order="random"), SITES, TENSORS)
    visits = [strategy.select(number)[0] for number in range(1, 31)]
    cycles = {tuple(visits[start : start + 3]) for start in range(0, 30, 3)}
    assert {frozenset(cycle) for cycle in cycles} == {frozenset(SITES)}
    assert len(cycles) > 1
    again = begin(Cyclic(order="random"), SITES, TENSORS)
    assert [again.select(number)[0] for number in range(1, 31)] == visits


def test_a_site_that_fails_is_passed_over(begin: Call, fold: Call) -> None:
    strategy = begin(Cyclic(), SITES, TENSORS)
    model = fold(strategy, one(0), {"a": one(1)})
    assert fold(strategy, model, {}, number=2) is None
    assert strategy.outcome.skipped == "0 usable updates, 1 needed (strategy.min_sites)"
    assert strategy.select(3) == ["c"]
    assert fold(strategy, model, {"c": one(4)}, number=3)[WEIGHT] == 4


def test_on_a_convex_problem_it_is_descent_on_one_site_after_another() -> None:
    weight = np.zeros(2)
    for number in range(7):
        site = sorted(CENTRE)[number % 3]
        for _ in range(5):
            weight = weight - 0.1 * CURVATURE[site] * (weight - CENTRE[site])
    np.testing.assert_allclose(Convex(Cyclic()).run(7), weight, rtol=1e-13)


def test_it_forgets_the_sites_before_the_last_one() -> None:
    """The limit of Chang et al.'s rule: after long visits the model is the last site's, where the
    mean of all sites lies between them."""
    model = Convex(Cyclic(), steps=80, rate=0.2).run(6)
    np.testing.assert_allclose(model, CENTRE["c"], atol=1e-2)


@pytest.mark.parametrize("settings", [{"fraction": 0.5}, {"min_sites": 2}])
def test_more_than_one_site_a_round_is_refused(begin: Call, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"one site a round; leave strategy\.fraction and"):
        begin(Cyclic(**settings), SITES, TENSORS)


def test_a_method_that_needs_several_sites_in_every_round_is_refused(begin: Call) -> None:
    judge = TensorInfo("judge", "weight", "summed", (1,), "float64", ("source", "b"))
    with pytest.raises(UserError, match="sub-network judge needs source and b in every round"):
        begin(Cyclic(), SITES, {**TENSORS, "judge/w": judge})


# Swarm.


def train(strategy: Strategy, fold: Call, rounds: int) -> list[np.ndarray]:
    """The models of some rounds, in which sites send other values every time."""
    model, found = one(0.1), []
    for number in range(1, rounds + 1):
        sent = {site: one(0.1 * number + k / 7) for k, site in enumerate(SITES)}
        model = fold(strategy, model, sent, examples={"a": 3, "b": 7, "c": 1}, number=number)
        found.append(model[WEIGHT])
    return found


def test_swarm_is_fedavg_to_the_bit(begin: Call, fold: Call) -> None:
    swarm, plain = begin(Swarm(), SITES, TENSORS), begin(FedAvg(), SITES, TENSORS)
    for found, expected in zip(train(swarm, fold, 4), train(plain, fold, 4), strict=True):
        assert found.tobytes() == expected.tobytes()


def test_every_round_has_one_head_and_all_sites_become_it(begin: Call, fold: Call) -> None:
    strategy, heads = begin(Swarm(), SITES, TENSORS), []
    for number in range(1, 13):
        fold(strategy, one(0), {site: one(1) for site in SITES}, number=number)
        told = {site: metrics["head"] for site, metrics in strategy.outcome.sites.items()}
        assert sorted(told.values()) == [0, 0, 1]
        heads.append(strategy.head)
        assert told[heads[-1]] == 1
    assert set(heads) == set(SITES)


def test_a_site_that_failed_is_no_head(begin: Call, fold: Call) -> None:
    strategy = begin(Swarm(), SITES, TENSORS)
    for number in range(1, 7):
        fold(strategy, one(0), {"b": one(1)}, number=number)
        assert strategy.head == "b"


def test_the_head_sends_its_update_nowhere_and_has_the_model(begin: Call, fold: Call) -> None:
    strategy, plain = begin(Swarm(), SITES, TENSORS), begin(FedAvg(), SITES, TENSORS)
    last = None
    for number in range(1, 5):
        sent = {site: one(1) for site in SITES}
        for one_of in (plain, strategy):
            fold(one_of, one(0), sent, number=number)
        up, down = plain.outcome.bytes_up, plain.outcome.bytes_down
        found, head = strategy.outcome, strategy.head
        assert found.bytes_up == Counter({s: up[s] for s in SITES if s != head})
        assert found.bytes_down == Counter({s: down[s] for s in SITES if s != last})
        spent = found.bytes_down.copy()
        strategy.configure_evaluate(number, pack_arrays(one(1)), ConfigRecord(), None)
        for site in SITES:
            assert (found.bytes_down[site] > spent[site]) == (site != head)
        last = head


# Resume and runs.


@pytest.mark.parametrize("kind", [Cyclic, Swarm])
def test_the_state_is_all_that_a_resumed_run_needs(kind: type[Strategy]) -> None:
    whole, cut, again = Convex(kind()), Convex(kind()), Convex(kind())
    whole.run(5)
    cut.run(2)
    again.strategy.state = {name: array.copy() for name, array in cut.strategy.state.items()}
    again.model, again.rounds = cut.model, cut.rounds
    again.run(3)
    assert again.model["net/w"].tobytes() == whole.model["net/w"].tobytes()
    assert again.strategy.outcome == whole.strategy.outcome


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (run / "rounds.jsonl").read_text().splitlines()]


def test_cyclic_runs(simulate_undrawn: Callable[..., Path], tmp_path: Path) -> None:
    quiet = ("strategy=cyclic", "baselines=[]", "evaluated=[global]", "validate_every=0")
    run = simulate_undrawn(tmp_path / "run", *quiet, "method=drai", "method.generation_rounds=1")
    found = lines(run)
    assert [list(line["sites"]) for line in found] == [["vendor_a"], ["vendor_b"]]
    assert not any(line["failed"] or line["rejected"] or line["skipped"] for line in found)


def test_a_swarm_ends_in_fedavg_s_model(
    simulate_undrawn: Callable[..., Path], reference: Path, tmp_path: Path
) -> None:
    run = simulate_undrawn(tmp_path / "run", "strategy=swarm", "baselines=[]", "evaluated=[global]")
    for line, plain in zip(lines(run), lines(reference), strict=True):
        (head,) = [site for site, told in line["sites"].items() if told["head"]]
        assert line["sites"][head]["bytes_up"] < plain["sites"][head]["bytes_up"]
        assert line["bytes_down"] < plain["bytes_down"]
    last = "checkpoints/round_0002.safetensors"
    found, expected = read_tensors(run / last), read_tensors(reference / last)
    assert found.keys() - expected.keys() == {"state::head"}
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes()
