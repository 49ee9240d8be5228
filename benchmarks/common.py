"""What the benchmarks share: a phantom federation, and a table with its verdict."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedshift.client.policy import Policy
from fedshift.client.simulation import LocalSites
from fedshift.protocol.flower import Grid
from fedshift.runs.config import load
from fedshift.runs.simulate import Egress
from fedshift.runs.stored import build_plan
from fedshift.server.cross_site import Row, finished_models, score
from fedshift.server.federation import meet
from fedshift.server.plan import RunPlan
from fedshift.server.progress import Silent
from fedshift.server.rounds import train
from fedshift.server.training import prepare
from fedshift.sites import DataSettings, load_federation

VENDORS = ("vendor_a", "vendor_b", "vendor_c", "vendor_d")
SPLITS = ("val", "test")


@dataclass(frozen=True)
class Simulation:
    """What ``fedshift simulate`` makes of a config, before an engine runs it."""

    plan: RunPlan
    sites: LocalSites


def simulation(out: Path, cache: Path, sites: int, *overrides: str) -> Simulation:
    """A cardiac phantom federation of ``sites`` training sites that writes to ``out``.

    No baseline is trained; of the finished models the global one alone is scored.
    """
    vendors = ",".join(f"site_{k:04d}:[{VENDORS[k % len(VENDORS)]}]" for k in range(sites))
    config = load(
        [
            "federation=cardiac_phantom",
            f"federation.sites={{{vendors}}}",
            "federation.unseen=[]",
            "baselines=[]",
            "evaluated=[global]",
            f"data.cache={cache}",
            *overrides,
        ]
    )
    data = DataSettings.from_config(config["data"])
    federation = load_federation(config["federation"], data, config["seed"])
    plan = build_plan(out, config, federation.parts, identity="benchmark")
    policy = Policy.from_config(config["policy"])
    local = LocalSites(federation, data, policy, plan.checkpoints / "sites", plan.seed)
    out.mkdir(parents=True, exist_ok=True)
    egress = Egress(local, out / "egress.jsonl", done=0)
    return Simulation(replace(plan, after_round=egress.collect), local)


def train_and_score(grid: Grid, plan: RunPlan) -> list[Row]:
    """Run the rounds, then score the global model at every site; the rows, a case and part.

    That is the whole of a run but for the shift statistics and the tables made of these rows.
    """
    training = prepare(meet(grid, plan), plan)
    train(training, plan, Silent())
    models = finished_models(training, plan)
    asked = training.instruction.but(round=plan.rounds)
    scores = score(training.sites, asked, training.method.task, models, SPLITS, Silent())
    assert not scores.problems, scores.problems
    return scores.cases


def open_all(sites: LocalSites) -> None:
    """Draw every phantom into the cache, so that no timing includes it."""
    for name in sites.names:
        sites.open(name)


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print ``rows`` under ``heads``: the first column left, the others right."""
    lines = [tuple(heads), *(tuple(row) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        first, *others = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *others]))


def verdict(what: str, value: float, at_most: float, unit: str = "x") -> bool:
    """Print whether ``value`` is at most its target; return it."""
    met = value <= at_most
    print(f"{what}: {value:.2f}{unit}, target at most {at_most:g}{unit}: {_word(met)}")
    return met


def verdict_at_least(what: str, value: float, at_least: float, unit: str = "x") -> bool:
    """Print whether ``value`` is at least its target; return it."""
    met = value >= at_least
    print(f"{what}: {value:.2f}{unit}, target at least {at_least:g}{unit}: {_word(met)}")
    return met


def _word(met: bool) -> str:
    return "met" if met else "MISSED"


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of paired measurements: pairs were measured side by side."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
