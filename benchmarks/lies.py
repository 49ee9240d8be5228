"""How far one site moves a run with lies that lie within the coordinator's bounds.

Run with ``python benchmarks/lies.py [SEEDS [STRATEGY...]]`` (3, all). Eight cardiac phantom sites
of four vendors, at 32 pixels, train a small network for 5 rounds of 8 steps; the first one lies in
every round:

* ``change x10`` and ``change x-1``: it sends its change of the model so many times as large;
* ``claims 10^9``: its card and its updates say that it has 10^9 examples, the most that a card may;
* ``wrong labels``: it trains, honestly, on labels of other subjects.

Printed are, as means over the seeds (and their worst), how far the final model lies from that of
the same run with an honest site, in units of how far the honest run moved from its start, and by
how much the mean test Dice of the seven other sites changed. There is no target: a lie within
bounds is for the strategy to withstand.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Simulation, print_table, simulation

from fedshift.client.simulation import LocalSites
from fedshift.client.worker import SiteWorker
from fedshift.protocol.flower import ArrayRecord, ConfigRecord, Message
from fedshift.protocol.messages import (
    ANSWER,
    ARRAYS,
    Action,
    Arrays,
    Instruction,
    pack_arrays,
    unpack_arrays,
)
from fedshift.server.cross_site import finished_models, score
from fedshift.server.engines.inline import InlineGrid
from fedshift.server.federation import meet
from fedshift.server.progress import Silent
from fedshift.server.rounds import train
from fedshift.server.training import prepare

SITES = 8
LIAR = "site_0000"
MOST = 10**9
OPTIONS = (
    "federation.subjects=6",
    "federation.slices=2",
    "federation.size=32",
    "method.depth=3",
    "method.width=4",
    "method.lr=0.01",
    "rounds=5",
    "local_steps=8",
    "validate_every=0",
)
LIES = ("change x10", "change x-1", "claims 10^9", "wrong labels")
STRATEGIES: dict[str, tuple[str, ...]] = {
    "fedavg": (),
    "fedavg, max_share=0.2": ("strategy.max_share=0.2",),
    "fedavg, uniform": ("strategy.weighting=uniform",),
    "fedadam": (),
    "scaffold": (),
    "norm_clipping": ("strategy.bound=1",),
    "median": (),
    "trimmed_mean": ("strategy.byzantine=1",),
    "geometric_median": (),
    "krum": ("strategy.byzantine=1",),
    "multi_krum": ("strategy.byzantine=1",),
    "bulyan": ("strategy.byzantine=1",),
}


class Liar(SiteWorker):
    """A site that answers honestly but for one ``lie``."""

    lie = ""

    def handle(self, message: Message) -> Message:
        """The answer, with the lie in it."""
        reply = super().handle(message)
        asked = Instruction.from_record(message.content["config"])
        if reply.has_error():
            return reply
        told = reply.content[ANSWER]
        assert isinstance(told, ConfigRecord)
        details = json.loads(str(told["details"]))
        if self.lie == "claims 10^9" and asked.action is Action.CARD:
            details["splits"]["train"] |= {"slices": MOST, "labelled": MOST}
        elif self.lie == "claims 10^9" and asked.action is Action.FIT:
            details["trained"] = dict.fromkeys(details["trained"], MOST)
        elif self.lie.startswith("change") and asked.action is Action.FIT:
            factor = float(self.lie.removeprefix("change x"))
            start, sent = message.content[ARRAYS], reply.content[ARRAYS]
            assert isinstance(start, ArrayRecord) and isinstance(sent, ArrayRecord)
            before = unpack_arrays(start)
            changed = {
                name: (before[name] + factor * (array - before[name])).astype(array.dtype)
                for name, array in unpack_arrays(sent).items()
            }
            reply.content[ARRAYS] = pack_arrays(changed)
        told["details"] = json.dumps(details)
        return reply


class LyingSites(LocalSites):
    """The same sites, of which :data:`LIAR` tells ``lie``."""

    lie = ""

    def worker(self, name: str, device: torch.device) -> SiteWorker:
        """The worker of a site."""
        worker = super().worker(name, device)
        if name == LIAR:
            worker.__class__ = Liar
            worker.lie = self.lie  # type: ignore[attr-defined]
        return worker


def outcome(run: Simulation, lie: str) -> tuple[np.ndarray, np.ndarray, float]:
    """All numbers of the model at the start and at the end, and the others' mean test Dice."""
    sites = LyingSites(**{f.name: getattr(run.sites, f.name) for f in fields(run.sites)})
    object.__setattr__(sites, "lie", lie)
    with InlineGrid(sites, ["cpu"], threads=1) as grid:
        training = prepare(meet(grid, run.plan), run.plan)
        start = numbers(unpack_arrays(training.arms[0].model))
        train(training, run.plan, Silent())
        models = finished_models(training, run.plan)
        asked = training.instruction.but(round=run.plan.rounds)
        task = training.method.task
        scores = score(training.sites, asked, task, models, ("test",), Silent())
        end = numbers(unpack_arrays(training.arms[0].model))
    dice = [row["dice"] for row in scores.cases if row["site"] != LIAR]
    return start, end, float(np.mean(dice))


def numbers(arrays: Arrays) -> np.ndarray:
    """All of a model's, in the order of their names."""
    return np.concatenate([arrays[name].ravel().astype(np.float64) for name in sorted(arrays)])


def main(seeds: int, names: Sequence[str]) -> None:
    """Print the table of the strategies ``names``."""
    rows: list[tuple[Any, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        for name in names:
            found: dict[str, list[tuple[float, float]]] = {lie: [] for lie in LIES}
            honest_dice = []
            for seed in range(seeds):
                common = (
                    *OPTIONS,
                    f"strategy={name.partition(',')[0]}",
                    *STRATEGIES[name],
                    f"seed={seed}",
                )
                out = Path(folder) / f"{name} {seed}"
                start, honest, dice = outcome(simulation(out, cache, SITES, *common), "")
                honest_dice.append(dice)
                for lie in LIES:
                    faulty = [f"federation.faulty_sites={{{LIAR}: labels}}"]
                    extra = faulty if lie == "wrong labels" else []
                    run = simulation(Path(f"{out} {lie}"), cache, SITES, *common, *extra)
                    _, end, reached = outcome(run, lie)
                    moved = np.linalg.norm(end - honest) / np.linalg.norm(honest - start)
                    found[lie].append((float(moved), reached - dice))
            cells = []
            for pairs in found.values():
                moved, change = np.array(pairs).T
                far = f"{moved.mean():.2f} ({moved.max():.2f})"
                cells.append(f"{far}, {change.mean():+.2f} ({change.min():+.2f})")
            rows.append((name, f"{np.mean(honest_dice):.2f}", *cells))
            print(" | ".join(rows[-1]), flush=True)
    print()
    print_table(["strategy", "honest Dice", *LIES], rows)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 3, sys.argv[2:] or list(STRATEGIES))
