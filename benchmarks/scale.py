"""How time grows with the number of sites: one round at 100 and at 1,000.

Run with ``python benchmarks/scale.py``. Each federation trains a small network at every site for
one round of FedAvg, validates it at every site, and scores the global model there, in the inline
engine with as many workers as cores. The phantoms are drawn before. Each figure is the median of
three runs, the two sizes in turn.

Domain shift is measured between pairs of sites, so that part of a run grows with their square;
it is no part of a round and not measured here.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import Simulation, open_all, print_table, simulation, train_and_score, verdict

from fedshift.server.engines.inline import InlineGrid

SIZES = (100, 1000)
TURNS = 3
OPTIONS = (
    "rounds=1",
    "local_steps=1",
    "method.width=2",
    "method.depth=2",
    "method.batch=2",
    "federation.size=32",
    "federation.subjects=3",
    "federation.slices=1",
    "data.size=32",
)


def timed_round(run: Simulation) -> float:
    """Seconds that one round and the scoring take, the start of the workers included."""
    start = time.perf_counter()
    with InlineGrid(run.sites, ["cpu"] * len(os.sched_getaffinity(0)), threads=1) as grid:
        rows = train_and_score(grid, run.plan)
    scored = {row["site"] for row in rows}
    assert scored == set(run.sites.names), f"{len(scored)} of {len(run.sites.names)} sites scored"
    return time.perf_counter() - start


def main() -> int:
    """Print seconds by number of sites; return 1 when the target is missed."""
    seconds: dict[int, list[float]] = {sites: [] for sites in SIZES}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        start = time.perf_counter()
        open_all(simulation(Path(folder) / "none", cache, max(SIZES), *OPTIONS).sites)
        drawn = time.perf_counter() - start
        for turn in range(TURNS):
            for sites in SIZES:
                run = simulation(Path(folder) / f"{sites} {turn}", cache, sites, *OPTIONS)
                seconds[sites].append(timed_round(run))
    medians = {sites: statistics.median(found) for sites, found in seconds.items()}
    print(f"one round and scoring; drawing {max(SIZES)} sites took {drawn:.1f} s before\n")
    print_table(
        ["sites", "wall s", "ms a site"],
        [(str(n), f"{took:.2f}", f"{1000 * took / n:.1f}") for n, took in medians.items()],
    )
    few, many = SIZES
    return int(not verdict(f"\n{many} sites / {few} sites", medians[many] / medians[few], 12))


if __name__ == "__main__":
    sys.exit(main())
