"""The inline engine against Flower's own simulation on Ray, with the same apps.

Run with ``python benchmarks/vs_ray.py``; needs ``pip install fedshift[ray]``. 16 sites train a
small network for three rounds; the same ServerApp and SiteWorkers run in both engines with one
worker a core, and the models they end with must be equal bit for bit. The phantoms are drawn
before. Each run is a process of its own; timed is the run alone, imports excluded, the start of
the workers or of Ray included. Medians of three, the engines in turn. The last round's own time is
printed too: it says what remains when the start is forgotten.

Ray listens on all interfaces without authentication. As root on Linux the benchmark therefore
runs itself in a network namespace that has a loopback device and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SITES = 16
ENGINES = ("inline", "ray")
TURNS = 3
OPTIONS = (
    "rounds=3",
    "local_steps=2",
    "method.width=4",
    "method.depth=3",
    "method.batch=4",
    "federation.size=32",
    "federation.subjects=5",
    "federation.slices=2",
    "data.size=32",
)
ISOLATED = "FEDSHIFT_BENCHMARK_ISOLATED"


def simulate(engine: str, out: Path, cache: Path) -> None:
    """The run that is measured; writes its seconds beside its results."""
    # Not at the top: worker processes import the main program, and that of `fedshift` is light.
    from common import simulation

    from fedshift.protocol.settings import from_mapping
    from fedshift.runs.engine import run_engine
    from fedshift.runs.settings import EngineSettings
    from fedshift.server.progress import Silent

    run = simulation(out, cache, SITES, *OPTIONS)
    settings = from_mapping(EngineSettings, {"name": engine})
    start = time.perf_counter()
    run_engine(run.plan, run.sites, settings, Silent())
    (out / "seconds").write_text(str(time.perf_counter() - start))


def measure(engine: str, out: Path, cache: Path) -> tuple[float, float, bytes]:
    """Seconds of a run and of its last round, and its final checkpoint."""
    command = [sys.executable, __file__, engine, str(out), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{engine} failed:\n{done.stderr[-3000:]}")
    last = json.loads((out / "rounds.jsonl").read_text().splitlines()[-1])
    assert not last["failed"], last["failed"]
    model = (out / "checkpoints" / "round_0003.safetensors").read_bytes()
    return float((out / "seconds").read_text()), last["seconds"], model


def main() -> int:
    """Print seconds by engine; return 1 when the target is missed."""
    from common import open_all, print_table, simulation, verdict_at_least

    runs: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    rounds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    models = set()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        open_all(simulation(Path(folder) / "none", cache, SITES, *OPTIONS).sites)
        for turn in range(TURNS):
            for engine in ENGINES:
                run, last, model = measure(engine, Path(folder) / f"{engine} {turn}", cache)
                runs[engine].append(run)
                rounds[engine].append(last)
                models.add(model)
    assert len(models) == 1, "the engines ended with different models"
    print(f"{SITES} phantom sites, three rounds, the same apps, equal models\n")
    print_table(
        ["engine", "run s", "last round s"],
        [
            (name, f"{statistics.median(runs[name]):.2f}", f"{statistics.median(rounds[name]):.2f}")
            for name in ENGINES
        ],
    )
    ratio = statistics.median(runs["ray"]) / statistics.median(runs["inline"])
    return int(not verdict_at_least("\nRay / inline", ratio, 3))


def isolate() -> None:
    """Start again without a network but loopback, where that is possible."""
    able = os.geteuid() == 0 and shutil.which("unshare") and shutil.which("ip")
    if able and ISOLATED not in os.environ:
        os.environ[ISOLATED] = "1"
        script = 'ip link set lo up && exec "$0" "$@"'
        os.execvp("unshare", ["unshare", "-n", "sh", "-c", script, sys.executable, *sys.argv])


if __name__ == "__main__":
    if len(sys.argv) == 4:
        simulate(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        isolate()
        sys.exit(main())
