"""A federation of processes on loopback: it gives a simulation's bits, and goes on through what
happens to machines and lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kit.hospitals import COMMAND, Coordinator, Line, Run, SiteProcess, config, free_port
from kit.waiting import until

from fedshift.protocol.storage import read_tensors
from fedshift.runs import simulate as simulation
from fedshift.sites.example import write_example

SITES = ("hospital-1", "hospital-2")
LONG = ("local_steps=120", "rounds=3", "validate_every=0")
"""Rounds of some seconds, so that something can happen in the middle of one."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hospitals' folders, and the table of both."""
    folder = tmp_path_factory.mktemp("hospitals")
    write_example(folder, sites=2, subjects=10, slices=2, size=32)
    return folder


@pytest.fixture(scope="module")
def simulated(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The simulation of the same config, made once."""
    made: dict[tuple[str, ...], Path] = {}

    def simulate(*overrides: str) -> Path:
        if overrides not in made:
            made[overrides] = tmp_path_factory.mktemp("simulated") / "run"
            of = config(data / "MANIFEST.tsv", *overrides, f"out={made[overrides]}")
            simulation.run(made[overrides], of, drawn=False)
        return made[overrides]

    return simulate


class Deployment:
    """A coordinator and the sites that a test starts; all are ended with it."""

    def __init__(self, folder: Path, data: Path, transport: str = "https", **hub: Any) -> None:
        self.folder, self.data = folder, data
        self.coordinator = Coordinator(folder / "coordinator", transport, **hub)
        self.sites: list[SiteProcess] = []
        self.lines: list[Line] = []

    def __enter__(self) -> Deployment:
        self.coordinator.__enter__()
        return self

    def start(self, name: str, *options: str, port: int | None = None) -> SiteProcess:
        site = SiteProcess(self.coordinator, name, self.data / name, *options, port=port)
        self.sites.append(site)
        return site

    def line(self) -> Line:
        self.lines.append(Line(self.coordinator.port))
        return self.lines[-1]

    def run(self, name: str, *overrides: str) -> Run:
        of = config(self.data / "MANIFEST.tsv", *overrides)
        return self.coordinator.run(self.folder / name, of, SITES)

    def __exit__(self, *exception: object) -> None:
        for line in self.lines:
            line.mend()
        for site in self.sites:
            site.end()
        for line in self.lines:
            line.close()
        self.coordinator.__exit__(*exception)


@pytest.fixture
def deployment(tmp_path: Path, data: Path) -> Iterator[Deployment]:
    with Deployment(tmp_path, data) as found:
        yield found


def same_weights(one: Path, other: Path) -> None:
    """The last checkpoints of two runs hold the same bits."""
    newest = [max((run / "checkpoints").glob("round_*.safetensors")) for run in (one, other)]
    assert newest[0].name == newest[1].name
    ours, theirs = (read_tensors(path) for path in newest)
    assert ours.keys() == theirs.keys() and ours
    for name in ours:
        assert ours[name].tobytes() == theirs[name].tobytes(), name


@pytest.mark.parametrize("transport", ["https", "grpc"])
def test_a_deployed_run_has_the_bits_of_the_simulated_one(
    tmp_path: Path, data: Path, simulated: Callable[..., Path], transport: str
) -> None:
    with Deployment(tmp_path, data, transport) as deployment:
        for name in SITES:
            deployment.start(name)
        out = deployment.run("run", "strategy=fedbn").end()
        for site in deployment.sites:
            parent = psutil.Process(site.process.pid)
            for process in (parent, *parent.children(recursive=True)):
                held = process.net_connections("inet")
                assert not any(each.status == psutil.CONN_LISTEN for each in held)
        same_weights(out, simulated("strategy=fedbn"))
        assert (out / "report.html").exists() and (out / "cross_site.csv").exists()
        assert not deployment.coordinator.refused
    assert [site.process.returncode for site in deployment.sites] == [0, 0]


def test_a_site_that_is_killed_in_a_round_and_comes_back_completes_it(
    deployment: Deployment, simulated: Callable[..., Path]
) -> None:
    first, _ = (deployment.start(name) for name in SITES)
    run = deployment.run("run", *LONG)
    until(lambda: len(run.rounds) >= 1 and first.works("train"), 120, "a second round")
    first.kill()
    first.begin()
    same_weights(run.end(), simulated(*LONG))
    assert all(not line["failed"] for line in run.rounds)


def test_a_site_that_is_killed_is_named_within_25_s_and_goes_on_when_it_is_back(
    deployment: Deployment,
) -> None:
    first, _ = (deployment.start(name) for name in SITES)
    run = deployment.run("run", *LONG[:1], "rounds=5", "validate_every=0")
    until(lambda: len(run.rounds) >= 1 and first.works("train"), 120, "a second round")
    done = len(run.rounds)
    first.kill()
    killed = time.monotonic()
    until(lambda: len(run.rounds) > done, 60, "the round's end")
    assert time.monotonic() - killed < 25
    failed = run.rounds[done]["failed"]
    assert list(failed) == ["hospital-1"] and "not been heard of" in failed["hospital-1"]
    first.begin()
    run.end()
    assert set(run.rounds[-1]["sites"]) == set(SITES) and not run.rounds[-1]["failed"]


def test_two_runs_share_one_agent(deployment: Deployment, simulated: Callable[..., Path]) -> None:
    for name in SITES:
        deployment.start(name)
    runs = {seed: deployment.run(f"run_{seed}", f"seed={seed}") for seed in (1, 2)}
    for seed, begun in runs.items():
        same_weights(begun.end(), simulated(f"seed={seed}"))
    asked = subprocess.run(
        [*COMMAND, "client", "status", "--json", "--state", str(deployment.sites[0].state)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(json.loads(asked.stdout)["runs"]) == 2


@pytest.mark.parametrize(
    ("seconds", "most"), [(30, 40), pytest.param(60, 120, marks=pytest.mark.long)]
)
def test_a_line_that_is_cut_is_mended_and_the_run_completes(
    deployment: Deployment, seconds: int, most: int
) -> None:
    """Without a deadline the cut site loses the rounds that end while it is away, as documented."""
    line = deployment.line()
    deployment.start(SITES[0], port=line.port)
    deployment.start(SITES[1])
    run = deployment.run("run", "local_steps=60", f"rounds={most}", "validate_every=0")
    until(lambda: len(run.rounds) >= 1, 120, "a round")
    line.cut()
    time.sleep(seconds)
    line.mend()
    mended = len(run.rounds)
    assert mended < most - 5, "the run outlasts the cut"
    run.end()
    lost = [entry["round"] for entry in run.rounds if "hospital-1" in entry["failed"]]
    assert lost and max(lost) <= mended + 2
    assert set(run.rounds[-1]["sites"]) == set(SITES)


def test_with_a_deadline_a_line_that_is_cut_costs_no_round(
    deployment: Deployment, simulated: Callable[..., Path]
) -> None:
    line = deployment.line()
    deployment.start(SITES[0], port=line.port)
    deployment.start(SITES[1])
    run = deployment.run("run", *LONG, "deadline_s=90")
    until(lambda: len(run.rounds) >= 1, 120, "a round")
    line.cut()
    time.sleep(20)
    line.mend()
    same_weights(run.end(), simulated(*LONG))
    assert all(not entry["failed"] for entry in run.rounds)


def test_a_site_with_flowers_own_node_takes_part(
    deployment: Deployment, simulated: Callable[..., Path], tmp_path: Path
) -> None:
    deployment.start(SITES[1])
    key = deployment.coordinator.enrol(SITES[0])
    told = {
        "site": SITES[0],
        "data": str(deployment.data / SITES[0] / "MANIFEST.tsv"),
        "state": str(tmp_path / "state"),
        "policy": str(deployment.coordinator.folder / "policy.yaml"),
    }
    binaries = Path(sys.executable).parent
    port = free_port()
    with (tmp_path / "node.log").open("w") as log:
        node = subprocess.Popen(
            [
                str(binaries / "flower-supernode"),
                *("--superlink", f"127.0.0.1:{deployment.coordinator.port}"),
                *("--root-certificates", str(deployment.coordinator.folder / "ca.crt")),
                *("--auth-supernode-private-key", str(key)),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--node-config", " ".join(f"{name}='{value}'" for name, value in told.items())),
            ],
            env={
                **os.environ,
                "PATH": f"{binaries}:{os.environ['PATH']}",
                "OMP_NUM_THREADS": "1",
                "FLWR_HOME": str(tmp_path / "flwr"),
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_DISABLE_UPDATE_CHECK": "1",
                "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            run = deployment.run("run", "rounds=1", "evaluated=[global]", "shift.pairs=all")
            same_weights(run.end(), simulated("rounds=1", "evaluated=[global]", "shift.pairs=all"))
        finally:
            node.terminate()
            node.wait(30)
