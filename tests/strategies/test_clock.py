"""Simulated time: what sites take, who is late or away, and that nothing else changes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.convex import Convex

from fedshift import UserError
from fedshift.protocol.flower import ConfigRecord
from fedshift.protocol.messages import Action, Arrays, Instruction, TensorInfo, pack_arrays
from fedshift.protocol.storage import read_tensors
from fedshift.runs.config import load
from fedshift.server.report.figures import draw_all
from fedshift.server.report.run import read_run
from fedshift.strategies.base import Strategy
from fedshift.strategies.base.clock import Clock, Timing
from fedshift.strategies.cyclic import Cyclic
from fedshift.strategies.fedavg import FedAvg
from fedshift.strategies.local import Local
from fedshift.strategies.median import Median

SITES = tuple(f"site_{number:02d}" for number in range(10))


def node(**changes: Any) -> dict[str, Any]:
    return {
        "name": "test",
        "steps_per_s": 2,
        "down_mbps": 100,
        "up_mbps": 10,
        "availability": 1,
        "deadline_s": None,
        "wait_s": 60,
        "sites": {},
        **changes,
    }


def clock(seed: int = 0, **changes: Any) -> Clock:
    made = Clock.from_config(node(**changes), seed)
    assert made is not None
    return made


def values(made: Clock, rounds: int = 1) -> np.ndarray:
    """The seconds that one step takes, (sites, rounds)."""
    return np.array(
        [
            [
                made.timing(site, number, 0.0, down=0, steps=1, up=0).seconds
                for number in range(1, rounds + 1)
            ]
            for site in SITES
        ]
    )


# The clock itself.


def test_a_sites_time_by_hand() -> None:
    made = clock(sites={"site_01": {"steps_per_s": 0.5, "up_mbps": 1}})
    # 5 MB down at 100 Mbit/s, 30 steps at 2 a second, 1.25 MB up at 10 Mbit/s.
    found = made.timing("site_00", 3, 100.0, down=5_000_000, steps=30, up=1_250_000)
    assert found == Timing(100.0, 0.4, 15.0, 1.0)
    assert found.seconds == pytest.approx(16.4)
    assert found.end_s == pytest.approx(116.4)
    slow = made.timing("site_01", 3, 0.0, down=5_000_000, steps=30, up=1_250_000)
    assert slow == Timing(0.0, 0.4, 60.0, 10.0)


def test_what_is_drawn_once_a_site_stays() -> None:
    found = values(clock(steps_per_s={"dist": "lognormal", "median": 4, "sigma": 1}), rounds=4)
    assert len(set(found[:, 0])) == len(SITES)
    np.testing.assert_array_equal(found, found[:, :1].repeat(4, axis=1))


def test_what_is_drawn_anew_each_round_does_not() -> None:
    spread = {"dist": "uniform", "low": 1, "high": 5, "per": "round"}
    found = values(clock(steps_per_s=spread), rounds=4)
    assert len(set(found.ravel())) == found.size
    assert 1 / 5 <= found.min() < found.max() <= 1


def test_draws_follow_from_the_seed_the_site_and_the_round_alone() -> None:
    settings = {"steps_per_s": {"dist": "lognormal", "median": 4, "sigma": 1, "per": "round"}}
    first, again = clock(**settings), clock(**settings)
    first.available("site_03", 2)  # nothing is used up by a draw
    np.testing.assert_array_equal(values(first, 3), values(again, 3))
    assert not np.any(values(clock(seed=1, **settings), 3) == values(first, 3))


def test_a_lognormal_quantity_has_its_median_and_spread() -> None:
    made = clock(steps_per_s={"dist": "lognormal", "median": 4, "sigma": 0.7})
    seconds = [
        made.timing(f"site {number}", 1, 0.0, down=0, steps=1, up=0).seconds
        for number in range(3000)
    ]
    logs = np.log(1 / np.array(seconds))
    assert np.median(logs) == pytest.approx(math.log(4), abs=0.05)
    assert logs.std() == pytest.approx(0.7, abs=0.03)


def test_a_site_is_there_as_often_as_it_says() -> None:
    made = clock(availability=0.8, sites={"never": {"availability": 0}})
    times = sum(made.available(site, number) for site in SITES for number in range(400))
    assert times / 4000 == pytest.approx(0.8, abs=0.03)
    assert not any(made.available("never", number) for number in range(100))
    assert all(clock().available(site, number) for site in SITES for number in range(100))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps_per_s": "fast"}, r"clock\.steps_per_s must be a number or a distribution"),
        ({"steps_per_s": True}, r"clock\.steps_per_s must be a number"),
        ({"steps_per_s": 0}, r"clock\.steps_per_s must be above 0"),
        ({"up_mbps": math.nan}, r"clock\.up_mbps must be above 0"),
        ({"up_mbps": {"dist": "normal"}}, r"clock\.up_mbps\.dist=normal is not known; choose"),
        ({"up_mbps": {"dist": "uniform", "low": 3}}, r"clock\.up_mbps lacks high"),
        ({"up_mbps": {"dist": "uniform", "low": 3, "high": 2}}, r"from low to high"),
        ({"up_mbps": {"dist": "lognormal", "median": -1}}, r"clock\.up_mbps\.median must be"),
        ({"up_mbps": {"dist": "lognormal", "median": 1, "sigm": 1}}, r"did you mean sigma"),
        (
            {"up_mbps": {"dist": "lognormal", "median": 1, "per": "step"}},
            r"clock\.up_mbps\.per must be one of site, round",
        ),
        ({"availability": 1.5}, r"clock\.availability is a probability"),
        ({"availability": {"dist": "lognormal", "median": 0.5}}, "is a probability"),
        ({"deadline_s": -1}, r"clock\.deadline_s must be at least 0"),
        ({"sites": {"a": 3}}, r"clock\.sites\.a must be a group of settings"),
        ({"sites": {"a": {"steps": 3}}}, r"clock\.sites\.a\.steps is not a setting; did you mean"),
        ({"sites": {"a": {"up_mbps": 0}}}, r"clock\.sites\.a\.up_mbps must be above 0"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        clock(**changes)


def test_a_site_that_is_not_there_is_named_with_the_near_ones() -> None:
    made = clock(sites={"vendr_a": {"up_mbps": 1}, "all": {"steps_per_s": 9}})
    with pytest.raises(UserError, match=r"clock\.sites\.vendr_a .* did you mean vendor_a"):
        made.check(["vendor_a", "vendor_b"])
    made.check(["vendr_a"])


@pytest.mark.parametrize("name", ["lan", "hospitals"])
def test_the_clocks_that_come_along_can_be_built(name: str) -> None:
    config = load([f"clock={name}", "clock.steps_per_s=3"])["clock"]
    made = Clock.from_config(config, seed=0)
    assert made is not None
    assert values(made).ravel().tolist() == [1 / 3] * len(SITES)
    assert Clock.from_config(load([])["clock"], seed=0) is None


# What strategies make of it.

TENSORS = {"net/w": TensorInfo("net", "weight", "averaged", (250,), "float64")}


def bound(strategy: Strategy, **changes: Any) -> Strategy:
    instruction = Instruction(action=Action.FIT, seed=0, steps=10)
    nodes = {site: number for number, site in enumerate(SITES, start=2)}
    strategy.begin(nodes, TENSORS, instruction)
    strategy.clock = clock(**changes)
    return strategy


def asked(strategy: Strategy, number: int) -> list[str]:
    grid: Any = None
    model = pack_arrays({"net/w": np.zeros(250)})
    messages = strategy.configure_train(number, model, ConfigRecord(), grid)
    return sorted(strategy.names[message.metadata.dst_node_id] for message in messages)


def test_all_strategies_meet_the_same_sites() -> None:
    mean, median = (bound(kind(), availability=0.7) for kind in (FedAvg, Median))
    seen = [asked(mean, number) for number in range(1, 9)]
    assert seen == [asked(median, number) for number in range(1, 9)]
    assert len(set(map(tuple, seen))) > 1
    assert sorted([*asked(mean, 3), *mean.outcome.dropouts]) == list(SITES)


def test_sites_are_drawn_among_those_that_are_there() -> None:
    strategy = bound(FedAvg(fraction=0.3), availability=0.5)
    for number in range(1, 20):
        drawn = asked(strategy, number)
        assert not set(drawn) & set(strategy.outcome.dropouts)
        assert len(drawn) == min(3, len(SITES) - len(strategy.outcome.dropouts))


def test_a_site_whose_turn_it_is_is_not_asked_while_it_is_away() -> None:
    strategy = bound(Cyclic(), sites={"site_01": {"availability": 0}})
    assert asked(strategy, 1) == ["site_00"]
    assert asked(strategy, 2) == []
    assert strategy.outcome.bytes_down.total() == 0


def test_a_site_that_trains_alone_waits_for_nobody() -> None:
    strategy = bound(Local(), availability=0, deadline_s=1, up_mbps=1e-9, down_mbps=1e-9)
    assert asked(strategy, 1) == list(SITES)
    strategy.pass_time(1)
    assert strategy.now == 5.0  # 10 steps at 2 a second
    assert strategy.outcome.stragglers == {}


def test_stragglers_are_known_before_they_are_asked() -> None:
    strategy = bound(FedAvg(), deadline_s=6, sites={"site_04": {"steps_per_s": 1}})
    assert asked(strategy, 1) == [site for site in SITES if site != "site_04"]
    assert strategy.outcome.stragglers.keys() == {"site_04"}
    assert strategy.outcome.stragglers["site_04"] == pytest.approx(10.0, abs=0.01)
    strategy.pass_time(1)
    assert strategy.now == 6.0


def test_the_answer_is_part_of_the_time() -> None:
    """250 numbers of 8 bytes, with 128 of Flower's header: 17024 bits at 1 kbit a second."""
    strategy = bound(FedAvg(), up_mbps=1e-3, deadline_s=22)
    assert asked(strategy, 1) == []
    assert set(strategy.outcome.stragglers) == set(SITES)
    strategy = bound(FedAvg(), up_mbps=1e-3, deadline_s=23)
    assert asked(strategy, 1) == list(SITES)


def test_a_round_that_nobody_can_join_takes_the_wait() -> None:
    strategy = bound(FedAvg(), availability=0, wait_s=7)
    for number in (1, 2):
        assert asked(strategy, number) == []
        assert strategy.aggregate_train(number, []) == (None, None)
        strategy.pass_time(number)
    assert strategy.now == 14.0
    assert strategy.outcome.dropouts == list(SITES)


def test_a_round_lasts_as_long_as_its_slowest_site() -> None:
    problem = Convex(FedAvg(), steps=5)
    problem.strategy.clock = clock(sites={"b": {"steps_per_s": 0.5}})
    problem.run(3)
    assert problem.strategy.now == pytest.approx(30.0, abs=0.01)
    assert problem.strategy.outcome.timings["a"].start_s == pytest.approx(20.0, abs=0.01)


# Runs.

QUIET = ("baselines=[]", "evaluated=[global]")


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def model_of(run: Path) -> Arrays:
    return read_tensors(run / "checkpoints" / "round_0002.safetensors")


def test_without_a_clock_a_round_has_no_time(reference: Path) -> None:
    for line in lines_of(reference):
        told = {*line, *line["baselines"]["local"], *line["sites"]["vendor_a"]}
        assert not told & {"clock_s", "stragglers", "dropouts", "simulated_s"}


def test_where_nobody_is_late_or_away_the_clock_changes_no_bit(
    reference: Path, simulate: Callable[..., Path], tmp_path: Path
) -> None:
    run = simulate(tmp_path / "run", "clock=lan", "validate_every=0")
    found, expected = model_of(run), model_of(reference)
    assert found.keys() == expected.keys()
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
    now = 0.0
    for line in lines_of(run):
        slowest = 0.0
        for site in line["sites"].values():  # without validation these are the bytes of training
            seconds = 8 * site["bytes_down"] / 1e9 + 2 / 4 + 8 * site["bytes_up"] / 1e9
            assert site["simulated_s"] == pytest.approx(seconds, rel=1e-12)
            assert site["simulated_start_s"] == now
            slowest = max(slowest, now + site["simulated_s"])
        assert line["clock_s"] == now + max(s["simulated_s"] for s in line["sites"].values())
        now = line["clock_s"]
        assert line["baselines"]["local"]["clock_s"] == line["round"] * 0.5
        assert line["baselines"]["pooled"]["clock_s"] == line["round"] * 1.5


def test_a_straggler_does_not_train_and_is_told_of(
    simulate: Callable[..., Path], tmp_path: Path
) -> None:
    slow = ("clock=lan", "clock.sites={vendor_b: {steps_per_s: 0.5}}", "clock.deadline_s=3")
    run = simulate(tmp_path / "run", *slow, *QUIET)
    for line in lines_of(run):
        assert line["stragglers"].keys() == {"vendor_b"}
        assert line["stragglers"]["vendor_b"] == pytest.approx(4.0, abs=0.01)
        assert line["clock_s"] == 3.0 * line["round"]
        assert "loss" not in line["sites"]["vendor_b"]
        assert not (line["failed"] or line["rejected"])
    ledger = [json.loads(text) for text in (run / "egress.jsonl").read_text().splitlines()]
    updates = {entry["site"] for entry in ledger if entry["purpose"] == "model update"}
    assert updates == {"vendor_a", "vendor_c"}
    told = read_run(run)
    assert "2 rounds took 6 s. Not waited for: vendor_b (2 times)." in told.simulated
    assert "timeline.png" in draw_all(told)
    assert told.simulated in (run / "report.html").read_text()


def test_a_cut_run_goes_on_at_the_same_time(
    simulate: Callable[..., Path],
    cut_short: Callable[..., Path],
    contents: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    overrides = (
        "clock=hospitals",
        "clock.availability=0.7",
        "clock.deadline_s=2",
        "rounds=3",
        "baselines=[pooled,local]",
        "evaluated=[global]",
    )
    whole = simulate(tmp_path / "whole", *overrides)
    cut = cut_short(whole, tmp_path / "cut", last=2)
    simulate(cut, *overrides, "resume=true", "engine.workers=2")
    lines = lines_of(whole)
    assert any(line["stragglers"] for line in lines)
    assert any(line["dropouts"] for line in lines)
    expected, found = contents(whole), contents(cut)
    assert found.keys() == expected.keys()
    for path, content in expected.items():
        if path != "figures/curves.png":
            assert found[path] == content, path


def test_a_budget_of_time_needs_a_clock(command: Callable[..., Any], tmp_path: Path) -> None:
    asked = ("simulate", "budget=time", "budget_limit=10", f"out={tmp_path / 'run'}")
    found = command(*asked)
    assert found.code == 2
    assert "clock=hospitals" in found.err


def test_the_time_of_a_budget_is_the_clocks(simulate: Callable[..., Path], tmp_path: Path) -> None:
    timed = ("clock=lan", "budget=time", "budget_limit=1.2", "rounds=9", *QUIET)
    run = simulate(tmp_path / "run", *timed)
    assert len(lines_of(run)) == 2  # a round takes a little more than half a second
