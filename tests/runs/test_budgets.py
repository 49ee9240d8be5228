"""Budgets that end a run early, and references as strategies of their own: exact on resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.measured import SEGMENTATION

from fedshift import UserError
from fedshift.runs.stored import stored_run
from fedshift.server.plan import ResourceBudget
from fedshift.server.tables.files import read_cross_site

Simulate = Callable[..., Path]
Contents = Callable[..., dict[str, Any]]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def test_a_budget_ends_before_the_round_that_would_pass_it() -> None:
    budget = ResourceBudget("bytes", 100)
    assert budget.spent({"bytes_down": 20, "bytes_up": 10}, 15.0) == 45.0
    assert budget.ends([30.0]) is None
    assert budget.ends([30.0, 70.0]) is not None  # the costliest round took 40
    assert budget.ends([30.0, 60.0]) is None  # up to the limit itself is allowed
    assert budget.ends([30.0, 60.0, 90.0]) is not None
    assert budget.ends([130.0]) is not None
    assert ResourceBudget("time", 5).spent({"clock_s": 4.5}, 4.0) == 4.5
    assert "4 of 5 s are spent, and a round took up to 2" in str(
        ResourceBudget("time", 5).ends([2.0, 4.0])
    )


@pytest.fixture(scope="module")
def three_rounds(simulate_undrawn: Simulate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of three rounds. Not to be written to."""
    return simulate_undrawn(tmp_path_factory.mktemp("budget") / "run", "rounds=3")


def cost(run: Path, rounds: int) -> int:
    return sum(line["bytes_down"] + line["bytes_up"] for line in lines(run)[:rounds])


def test_a_run_ends_within_its_bytes_and_is_scored_as_it_is_then(
    simulate_undrawn: Simulate,
    cut_short: Simulate,
    three_rounds: Path,
    contents: Contents,
    tmp_path: Path,
) -> None:
    limit = cost(three_rounds, 2) + 1000
    options = ("rounds=3", "budget=bytes", f"budget_limit={limit}")
    ended = simulate_undrawn(tmp_path / "run", *options)
    told = lines(ended)
    assert [line["round"] for line in told] == [1, 2]
    assert told[0]["ended"] is None
    assert "another round would pass budget_limit" in told[1]["ended"]
    model = "checkpoints/round_0002.safetensors"
    assert (ended / model).read_bytes() == (three_rounds / model).read_bytes()
    with stored_run(ended) as stored:  # such as `fedshift evaluate` opens it
        assert stored.instruction.round == 2
    cut = simulate_undrawn(cut_short(ended, tmp_path / "cut"), *options, "resume=true")
    assert contents(cut) == contents(ended)


def test_a_budget_below_one_round_allows_that_round(
    simulate_undrawn: Simulate, tmp_path: Path
) -> None:
    ended = simulate_undrawn(tmp_path / "run", "budget=bytes", "budget_limit=1")
    assert len(lines(ended)) == 1
    assert (ended / "cross_site.csv").exists()


@pytest.mark.parametrize("strategy", ["local", "pooled"])
def test_training_apart_costs_no_bytes_and_resumes_to_the_same_models(
    simulate_undrawn: Simulate,
    cut_short: Simulate,
    contents: Contents,
    tmp_path: Path,
    strategy: str,
) -> None:
    options = (f"strategy={strategy}", "budget=bytes", "budget_limit=1")
    whole = simulate_undrawn(tmp_path / "run", *options)
    assert [line["ended"] for line in lines(whole)] == [None, None]
    rows = read_cross_site(whole / "cross_site.csv", SEGMENTATION)
    assert {row["model"] for row in rows} == {strategy}
    trained_on = {"vendor_a", "vendor_b", "vendor_c"} if strategy == "local" else {"all"}
    assert {row["trained_on"] for row in rows} == trained_on
    assert {row["site"] for row in rows} == {"vendor_a", "vendor_b", "vendor_c", "vendor_d"}
    cut = simulate_undrawn(cut_short(whole, tmp_path / "cut"), *options, "resume=true")
    assert contents(cut) == contents(whole)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("budget=bytes",), "budget=bytes needs budget_limit"),
        (("budget_limit=1e6",), "budget_limit limits budget=bytes or budget=time"),
        (("budget=time", "budget_limit=60"), "there is no clock"),
        (("budget=bytes", "budget_limit=-1"), "budget_limit must be at least 0"),
    ],
)
def test_half_a_budget_is_refused(
    simulate_undrawn: Simulate, tmp_path: Path, overrides: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        simulate_undrawn(tmp_path / "run", *overrides)
