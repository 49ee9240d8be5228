"""Peak memory of a whole run, by the number of sites: 64 against 4.

Run with ``python benchmarks/memory.py`` (Linux). Each run is a process of its own that simulates
one round in the inline engine with two workers, scoring and domain shift included. Every 100 ms
the memory of its process tree is read: the proportional set size (PSS), in which a page that
several processes share, such as the fork server's libraries, counts once. Pages of the
preprocessed images, which are memory-mapped from the cache and which the system drops when it
needs the memory, are counted while they are mapped, although the target leaves them out: the
figure is the stricter one. Medians of three runs, the two sizes in turn.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
from common import open_all, print_table, simulation, verdict

from fedshift.runs.engine import run_engine
from fedshift.runs.settings import EngineSettings
from fedshift.server.progress import Silent

SIZES = (4, 64)
TURNS = 3
PERIOD_S = 0.1
OPTIONS = ("rounds=1", "local_steps=2", "federation.subjects=3")


def simulate(out: Path, cache: Path, sites: int) -> None:
    """The run that is measured."""
    run = simulation(out, cache, sites, *OPTIONS)
    run_engine(run.plan, run.sites, EngineSettings(workers=2), Silent())


def tree_bytes(process: psutil.Process) -> int:
    """The PSS of ``process`` and its children in bytes."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it ended in between
            total += member.memory_full_info().pss
    return total


def peak_mib(out: Path, cache: Path, sites: int) -> float:
    """Run ``simulate`` in a process of its own; its tree's peak in MiB."""
    command = [sys.executable, __file__, str(out), str(cache), str(sites)]
    peak = 0
    with subprocess.Popen(command) as child:
        process = psutil.Process(child.pid)
        while child.poll() is None:
            with suppress(psutil.NoSuchProcess):
                peak = max(peak, tree_bytes(process))
            time.sleep(PERIOD_S)
    if child.returncode:
        raise RuntimeError(f"the run with {sites} sites ended with code {child.returncode}")
    return peak / 2**20


def main() -> int:
    """Print the peaks; return 1 when the target is missed."""
    peaks: dict[int, list[float]] = {sites: [] for sites in SIZES}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        open_all(simulation(Path(folder) / "none", cache, max(SIZES), *OPTIONS).sites)
        for turn in range(TURNS):
            for sites in SIZES:
                peaks[sites].append(peak_mib(Path(folder) / f"{sites} {turn}", cache, sites))
    medians = {sites: statistics.median(found) for sites, found in peaks.items()}
    print("peak PSS of the process tree, 2 workers\n")
    print_table(["sites", "peak MiB"], [(str(n), f"{peak:.0f}") for n, peak in medians.items()])
    few, many = SIZES
    return int(not verdict(f"\n{many} sites / {few} sites", medians[many] / medians[few], 1.25))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        simulate(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(main())
