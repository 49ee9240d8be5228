"""The coordinator and its sites as processes of their own: the server is killed in mid-run, and
the run ends with the bits of the simulated one; twenty sites stay as large as they are."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from kit.waiting import until

from fedshift.protocol.storage import read_tensors, write_yaml
from fedshift.runs.config import from_file
from fedshift.runs.simulate import run as simulate
from fedshift.server.fleet import control
from fedshift.sites.example import labels, write_example

PATIENCE_S = 240.0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the command in ``tmp_path``; what it prints is in ``NAME.out``."""
    started: list[subprocess.Popen[bytes]] = []

    def call(name: str, *words: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{name}.out").open("ab") as out:
            found = subprocess.Popen(
                [sys.executable, "-c", "from fedshift.cli import main; main()", *words],
                cwd=tmp_path,
                stdout=out,
                stderr=out,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        started.append(found)
        return found

    yield call
    for process in started:
        process.terminate()
    for process in started:
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


class Federation:
    """A server and its sites, each a process, as the guide has them."""

    def __init__(
        self,
        folder: Path,
        start: Callable[..., subprocess.Popen[bytes]],
        sites: int,
        subjects: int,
        **config: object,
    ) -> None:
        self.folder, self._start, self.state = folder, start, folder / "state"
        places = write_example(folder / "demo", sites=sites, subjects=subjects, slices=2, size=32)
        data = {"labels": labels(), "manifest": str(folder / "demo" / "MANIFEST.tsv")}
        node = {"federation": "manifest", "data": data, "method": {"depth": 3, "width": 4}}
        write_yaml(folder / "run.yaml", {**node, **config})
        write_yaml(folder / "policy.yaml", {"ask": False, "sites": 32})
        self.config = from_file(folder / "run.yaml", [])
        self._done("server", "keys")
        for name in places:
            assert start("key", "client", "key", f"{name}.key").wait(PATIENCE_S) == 0
            self._done("server", "enroll", name, f"{name}.pub")
        self.port = 0
        self.server = self.serve()
        self.sites = {}
        for name, place in places.items():
            words = f"--site {name} --server 127.0.0.1:{self.port} --key {name}.key --device cpu"
            more = ["--data", str(place), "--root-certificates", str(self.state / "ca.crt")]
            more += ["--policy", "policy.yaml", "--state", f"state-{name}"]
            self.sites[name] = start(name, "client", *words.split(), *more)

    def _done(self, *words: str) -> None:
        process = self._start("commands", *words, "--state", str(self.state))
        assert process.wait(PATIENCE_S) == 0, (self.folder / "commands.out").read_text()

    def serve(self) -> subprocess.Popen[bytes]:
        """Start the server, where it was if it had been started before."""
        words = ("--state", str(self.state), "--listen", f"127.0.0.1:{self.port}")
        printed = self.folder / "server.out"
        before = len(printed.read_text()) if printed.exists() else 0
        process = self._start("server", "server", *words)

        def port() -> str | None:
            found = re.findall(r"https on port (\d+)", printed.read_text()[before:])
            return found[-1] if found else None

        until(port, PATIENCE_S, "the server starts")
        self.port = int(port() or 0)
        until((self.state / control.NAME).exists, PATIENCE_S, "the socket is there")
        return process

    def submit(self) -> Path:
        """Begin the run; its folder."""
        found = control.ask(self.state, "submit", config={**self.config, "out": "x"})
        return Path(found["folder"])

    def told(self) -> str:
        """What has become of the run."""
        with suppress(control.NoServer):
            return str(control.ask(self.state, "runs")[0]["state"])
        return "going"


def rounds(out: Path) -> int:
    lines = out / "rounds.jsonl"
    return len(lines.read_text().splitlines()) if lines.exists() else 0


def test_a_server_that_is_killed_in_mid_run_ends_it_with_the_simulations_bits(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    federation = Federation(tmp_path, start, 2, 5, rounds=6, local_steps=4, baselines=["local"])
    out = federation.submit()
    until(lambda: rounds(out) >= 2, PATIENCE_S, "two rounds")
    federation.server.send_signal(signal.SIGKILL)
    federation.server.wait()
    again = federation.serve()
    began = time.monotonic()
    until(
        lambda: all(site["here"] for site in control.ask(federation.state, "sites")),
        PATIENCE_S,
        "the sites are back",
    )
    assert time.monotonic() - began < 15
    until(lambda: federation.told() != "going", PATIENCE_S, "the run ends")
    assert federation.told() == "done", (tmp_path / "server.out").read_text()
    again.terminate()
    assert again.wait(60) == 0

    config = federation.config
    alone = {"engine": {**config["engine"], "devices": "cpu", "workers": 1}}
    simulate(tmp_path / "alone", {**config, **alone}, drawn=False)
    checkpoints = tmp_path / "alone" / "checkpoints"
    names = sorted(path.name for path in checkpoints.glob("round_*.safetensors"))
    assert len(names) == 6
    for name in names:
        one, other = (read_tensors(run / "checkpoints" / name) for run in (tmp_path / "alone", out))
        assert one.keys() == other.keys()
        assert all(one[key].tobytes() == other[key].tobytes() for key in one), name


def pss(pid: int) -> float:
    """The memory of a process and its children, what several share counted once, in MB."""
    process = psutil.Process(pid)
    members = [process, *process.children(recursive=True)]
    return sum(member.memory_full_info().pss for member in members) / 1e6


@pytest.mark.long
def test_twenty_sites_on_one_machine_stay_as_large_and_as_quick_as_they_are(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Memory of every agent after round 3; the server's in rounds 20 to 25 against 5 to 10."""
    federation = Federation(
        tmp_path, start, 20, 5, rounds=25, local_steps=2, baselines=[], evaluated=["global"]
    )
    out = federation.submit()
    agents: dict[int, dict[str, float]] = {}
    server: dict[int, float] = {}
    while federation.told() == "going":
        done = rounds(out)
        if done and done not in server:
            server[done] = pss(federation.server.pid)
            agents[done] = {name: pss(site.pid) for name, site in federation.sites.items()}
        time.sleep(0.2)
    assert federation.told() == "done", (tmp_path / "server.out").read_text()
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert all(len(line["sites"]) == 20 and not line["failed"] for line in lines)

    def mean(values: dict[int, float], first: int, last: int) -> float:
        return statistics.mean(value for key, value in values.items() if first <= key <= last)

    seconds = {line["round"]: line["seconds"] for line in lines}
    early = {number: statistics.mean(found.values()) for number, found in agents.items()}
    print(
        f"agents {mean(early, 3, 5):.1f} MB after round 3, {mean(early, 20, 25):.1f} MB in rounds "
        f"20 to 25; server {mean(server, 5, 10):.1f} and {mean(server, 20, 25):.1f} MB; a round "
        f"{mean(seconds, 5, 10):.2f} and {mean(seconds, 20, 25):.2f} s"
    )
    for name in federation.sites:
        own = {number: found[name] for number, found in agents.items()}
        assert mean(own, 20, 25) <= 1.05 * mean(own, 3, 5), name
    assert mean(server, 20, 25) <= 1.1 * mean(server, 5, 10)
