"""FedBuff: queue and steps by hand, against Algorithm 1 with an event queue, and in runs."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.convex import CENTRE, CURVATURE, EXAMPLES, Convex

from fedshift import UserError
from fedshift.protocol.flower import ConfigRecord, Error, Message
from fedshift.protocol.messages import Action, Instruction, TensorInfo, pack_arrays
from fedshift.strategies.base import Strategy
from fedshift.strategies.base.clock import Clock
from fedshift.strategies.fedavg import FedAvg
from fedshift.strategies.fedbuff import FedBuff

STEPS, RATE = 5, 0.1
SECONDS = {"a": 1.0, "b": 3.0, "c": 9.5}
"""What a training takes; the transfers take next to nothing."""
INSTANT = 1e15


def clock(seconds: dict[str, float], **changes: Any) -> Clock:
    """Sites whose local training takes as many seconds."""
    sites = {name: {"steps_per_s": STEPS / taken} for name, taken in seconds.items()}
    node = {
        "name": "test",
        "steps_per_s": 1,
        "down_mbps": INSTANT,
        "up_mbps": INSTANT,
        "availability": 1,
        "deadline_s": None,
        "wait_s": 60,
        "sites": sites,
        **changes,
    }
    made = Clock.from_config(node, seed=0)
    assert made is not None
    return made


def federation(strategy: Strategy, seconds: dict[str, float] = SECONDS, **changes: Any) -> Convex:
    problem = Convex(strategy, STEPS, RATE)
    strategy.clock = clock(seconds, **changes)
    return problem


def trained(site: str, weight: np.ndarray) -> np.ndarray:
    for _ in range(STEPS):
        weight = weight - RATE * CURVATURE[site] * (weight - CENTRE[site])
    return weight


def staleness(strategy: Strategy) -> dict[str, float]:
    sites = strategy.outcome.sites
    return {name: sites[name]["staleness"] for name in strategy.outcome.timings}


def test_the_queue_and_the_steps_by_hand() -> None:
    """c begins at 0 and arrives at 9.5, in the fourth step; b begins again at 9."""
    strategy = FedBuff(buffer=2, lr=0.5)
    problem = federation(strategy)
    expected = [
        (3.0, {"a": 0, "b": 0}),
        (6.0, {"a": 0, "b": 0}),
        (9.0, {"a": 0, "b": 0}),
        (10.0, {"c": 3, "a": 0}),
        (12.0, {"a": 0, "b": 1}),
    ]
    versions = [np.zeros(2)]
    for time, buffer in expected:
        now = versions[-1]
        changes = []
        for site, stale in buffer.items():
            begun = versions[len(versions) - 1 - stale]
            changes.append((begun - trained(site, begun)) / np.sqrt(1 + stale))
        versions.append(now - 0.5 * sum(changes) / 2)
        found = problem.run(1)
        assert strategy.now == pytest.approx(time, abs=1e-9)
        assert staleness(strategy) == buffer
        np.testing.assert_allclose(found, versions[-1], rtol=1e-13, atol=1e-15)


def algorithm_1(seconds: dict[str, float], buffer: int, steps: int) -> list[np.ndarray]:
    """Nguyen et al., Algorithm 1, by an event queue: a site begins with the newest version, and
    again when the step that took its update is done."""
    weight, done = np.zeros(2), 0
    events = [(taken, site, weight, done) for site, taken in seconds.items()]
    heapq.heapify(events)
    versions = []
    while done < steps:
        total, idle, time = np.zeros(2), [], 0.0
        while len(idle) < buffer:
            time, site, begun, version = heapq.heappop(events)
            total = total + (begun - trained(site, begun)) / (1 + done - version) ** 0.5
            idle.append(site)
        weight = weight - total / buffer
        done += 1
        versions.append(weight)
        for site in idle:
            heapq.heappush(events, (time + seconds[site], site, weight, done))
    return versions


@pytest.mark.parametrize("buffer", [1, 2, 3])
def test_it_follows_algorithm_1(buffer: int) -> None:
    seconds = {"a": 1.0, "b": 2.3, "c": 7.77}
    problem = federation(FedBuff(buffer=buffer, most_stale=100), seconds)
    for expected in algorithm_1(seconds, buffer, 40):
        np.testing.assert_allclose(problem.run(1), expected, rtol=1e-12)


def test_of_all_sites_of_equal_pace_it_is_fedavg_to_the_bit() -> None:
    same = dict.fromkeys(SECONDS, 2.0)
    buffered = federation(FedBuff(buffer=3, weighting="examples"), same).run(12)
    assert buffered.tobytes() == Convex(FedAvg(), STEPS, RATE).run(12).tobytes()


def test_examples_weigh_the_changes_not_their_staleness() -> None:
    strategy = FedBuff(buffer=2, weighting="examples")
    problem = federation(strategy)
    first = problem.run(1)
    third = problem.run(2)
    found = problem.run(1)
    total = EXAMPLES["a"] + EXAMPLES["c"]
    step = EXAMPLES["a"] * (trained("a", third) - third)
    step = step + EXAMPLES["c"] * trained("c", np.zeros(2)) / 2  # s(3) = 1 / 2
    np.testing.assert_allclose(found, third + step / total, rtol=1e-12)
    assert not np.allclose(first, third)


def test_single_steps_of_all_sites_reach_the_minimiser_of_the_mean() -> None:
    problem = Convex(FedBuff(buffer=3), 1, 0.3)
    problem.strategy.clock = clock(dict.fromkeys(SECONDS, 1.0))
    pull = sum(CURVATURE.values())
    minimiser = sum(CURVATURE[site] * CENTRE[site] for site in CENTRE) / pull
    np.testing.assert_allclose(problem.run(300), minimiser, atol=1e-9)


def test_stale_changes_still_lead_to_a_minimum_that_all_sites_share() -> None:
    target = np.array([2.0, -3.0])
    strategy = FedBuff(buffer=1, most_stale=100)
    problem = Convex(strategy, STEPS, RATE, centres=dict.fromkeys(CENTRE, target))
    strategy.clock = clock(SECONDS)
    np.testing.assert_allclose(problem.run(300), target, atol=1e-9)


def test_it_is_sooner_than_fedavg_where_a_site_is_slow() -> None:
    target = np.array([2.0, -3.0])

    def error_at(strategy: Strategy, end: float) -> float:
        problem = Convex(strategy, STEPS, RATE, centres=dict.fromkeys(CENTRE, target))
        strategy.clock = clock({"a": 1.0, "b": 1.5, "c": 20.0})
        found = np.zeros(2)
        while strategy.now < end:
            found = problem.run(1)
        return float(np.linalg.norm(found - target))

    assert error_at(FedBuff(buffer=2), 40) < 0.01 * error_at(FedAvg(), 40)


# What is refused, given up or lost.


def begun(strategy: FedBuff, **changes: Any) -> FedBuff:
    tensors = {"net/w": TensorInfo("net", "weight", "averaged", (2,), "float64", **changes)}
    instruction = Instruction(action=Action.FIT, seed=0, steps=STEPS, method={"name": "tried"})
    strategy.begin({"a": 2, "b": 3, "c": 4}, tensors, instruction)
    strategy.clock = clock(SECONDS)
    return strategy


def test_a_buffer_that_no_round_can_fill_is_refused() -> None:
    with pytest.raises(UserError, match=r"strategy\.buffer is 4 and 3 sites train at a time"):
        begun(FedBuff(buffer=4))
    with pytest.raises(UserError, match=r"strategy\.buffer is 2 and 1 sites"):
        begun(FedBuff(buffer=2, fraction=0.2))


def test_a_method_that_needs_all_its_domains_is_refused() -> None:
    with pytest.raises(UserError, match="method=tried needs all its domains"):
        begun(FedBuff(), domains=("x", "y"))


def test_a_run_without_a_clock_is_refused(command: Callable[..., Any], tmp_path: Path) -> None:
    found = command("simulate", "strategy=fedbuff", f"out={tmp_path / 'run'}", "rounds=1")
    assert found.code == 2
    assert "simulated clock" in found.err
    assert "clock=hospitals" in found.err


def test_an_update_that_grew_too_old_is_given_up_and_its_site_begins_again() -> None:
    strategy = FedBuff(buffer=1, most_stale=2)
    problem = federation(strategy, {"a": 1.0, "b": 1.6, "c": 100.0})
    late, versions = [], []
    for _ in range(20):
        problem.run(1)
        late += strategy.outcome.stragglers
        versions.append(len({key.split("/")[1] for key in strategy.state if "version" in key}))
    assert late == ["c"] * 6  # it begins at version 0, and again at 3, 6, 9, 12, 15 and 18
    assert max(versions) <= 2


def test_a_site_slower_than_the_deadline_never_begins() -> None:
    strategy = FedBuff(buffer=2)
    problem = federation(strategy, deadline_s=5.0)
    for _ in range(3):
        problem.run(1)
        assert strategy.outcome.stragglers == {"c": pytest.approx(9.5)}
        assert set(strategy.outcome.timings) == {"a", "b"}
    assert strategy.now == pytest.approx(9.0)


def test_sites_that_cannot_be_asked_begin_later() -> None:
    strategy = begun(FedBuff(buffer=2))
    strategy.clock = clock(dict.fromkeys(SECONDS, 1.0), availability=0.0)
    model = pack_arrays({"net/w": np.zeros(2)})
    grid: Any = None
    assert list(strategy.configure_train(1, model, ConfigRecord(), grid)) == []
    assert strategy.outcome.dropouts == ["a", "b", "c"]
    assert strategy.aggregate_train(1, []) == (None, None)
    strategy.pass_time(1)
    assert strategy.now == 60.0
    strategy.clock = clock(dict.fromkeys(SECONDS, 1.0))
    assert len(list(strategy.configure_train(2, model, ConfigRecord(), grid))) == 2
    assert strategy.outcome.timings["a"].start_s == 60.0


def test_a_failed_site_begins_again_from_the_current_model() -> None:
    strategy = begun(FedBuff(buffer=1))
    model = pack_arrays({"net/w": np.zeros(2)})
    grid: Any = None
    for number in (1, 2):
        (asked,) = strategy.configure_train(number, model, ConfigRecord(), grid)
        assert strategy.names[asked.metadata.dst_node_id] == "a"
        error = Message(Error(102, "broken"), reply_to=asked)
        assert strategy.aggregate_train(number, [error]) == (None, None)
        assert strategy.outcome.failed == {"a": "broken"}
        strategy.pass_time(number)
        assert strategy.now == pytest.approx(number)


def test_fewer_sites_at_a_time_are_drawn_by_seed() -> None:
    strategy = begun(FedBuff(buffer=1, fraction=0.5))
    model = pack_arrays({"net/w": np.zeros(2)})
    grid: Any = None
    list(strategy.configure_train(1, model, ConfigRecord(), grid))
    jobs = [key for key in strategy.state if key.startswith("job/")]
    assert len(jobs) == 1  # two train at a time, and one of them arrives in this round


# Resume.


def test_the_state_is_all_that_a_resumed_run_needs() -> None:
    whole = federation(FedBuff(buffer=2))
    cut = federation(FedBuff(buffer=2))
    cut.run(3)
    again = federation(FedBuff(buffer=2))
    again.model, again.rounds = cut.model, 3
    again.strategy.state = {name: array.copy() for name, array in cut.strategy.state.items()}
    again.strategy.now = cut.strategy.now
    assert any("version/0/" in name for name in cut.strategy.state)
    assert again.run(6).tobytes() == whole.run(9).tobytes()
    assert again.strategy.now == whole.strategy.now


OVERRIDES = (
    "strategy=fedbuff",
    "clock=hospitals",
    "clock.sites={vendor_c: {steps_per_s: 0.7}}",
    "rounds=4",
    "baselines=[]",
    "evaluated=[global]",
)


def test_a_run_that_was_cut_ends_in_the_same_bytes(
    simulate_undrawn: Callable[..., Path],
    cut_short: Callable[..., Path],
    contents: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    whole = simulate_undrawn(tmp_path / "whole", *OVERRIDES)
    cut = cut_short(whole, tmp_path / "cut", last=2)
    simulate_undrawn(cut, *OVERRIDES, "resume=true", "engine.workers=2")
    expected, found = contents(whole), contents(cut)
    lines = [json.loads(line) for line in (whole / "rounds.jsonl").read_text().splitlines()]
    stale = [site.get("staleness", 0) for line in lines for site in line["sites"].values()]
    assert max(stale) > 0
    assert [line["clock_s"] for line in lines] == sorted({line["clock_s"] for line in lines})
    assert found.keys() == expected.keys()
    for path, content in expected.items():
        assert found[path] == content, path


STYLE = (
    "method=style_transfer",
    "method.translator_width=4",
    "method.pretraining_rounds=0",
    "method.translator_rounds=1",
)
DRAI = ("method=drai", "method.generation_rounds=1", "data.unlabelled_sites=[vendor_b]")


@pytest.mark.parametrize("method", [STYLE, DRAI], ids=["style_transfer", "drai"])
def test_methods_of_several_networks(
    method: tuple[str, ...], simulate_undrawn: Callable[..., Path], tmp_path: Path
) -> None:
    """The last-named trains its segmenter at the labelled sites only."""
    quiet = ("rounds=3", "baselines=[]", "evaluated=[global]", "validate_every=0")
    run = simulate_undrawn(tmp_path / "run", *method, *OVERRIDES[:3], *quiet)
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert not any(line["failed"] or line["rejected"] or line["skipped"] for line in lines)
    assert any(site["staleness"] > 0 for line in lines for site in line["sites"].values())
