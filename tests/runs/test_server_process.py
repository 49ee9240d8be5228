"""The coordinator and three sites as processes of their own: the server is killed in mid-run, and
the run ends with the bits of the simulated one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

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


def until(holds: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.1)


@pytest.mark.long
def test_a_server_that_is_killed_in_mid_run_ends_it_with_the_simulations_bits(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    state = tmp_path / "state"
    sites = write_example(tmp_path / "demo", sites=3, subjects=5, slices=2, size=32)
    node = {"federation": "manifest", "rounds": 6, "local_steps": 4, "baselines": ["local"]}
    node |= {"data": {"labels": labels(), "manifest": str(tmp_path / "demo" / "MANIFEST.tsv")}}
    write_yaml(tmp_path / "run.yaml", {**node, "method": {"depth": 3, "width": 4}})
    write_yaml(tmp_path / "policy.yaml", {"ask": False})

    assert start("keys", "server", "keys", "--state", str(state)).wait(PATIENCE_S) == 0
    for name in sites:
        assert start("key", "client", "key", f"{name}.key").wait(PATIENCE_S) == 0
        words = ("enroll", name, f"{name}.pub", "--state", str(state))
        assert start("enroll", "server", *words).wait(PATIENCE_S) == 0
    serve = ("server", "--state", str(state), "--listen", "127.0.0.1:{}")
    server = start("server", *serve[:-1], "127.0.0.1:0")

    def port() -> str | None:
        found = re.findall(r"https on port (\d+)", (tmp_path / "server.out").read_text())
        return found[-1] if found else None

    until(port, "the server starts")
    listened = port()
    for name, folder in sites.items():
        words = f"--site {name} --server 127.0.0.1:{listened} --key {name}.key --device cpu".split()
        words += ["--data", str(folder), "--root-certificates", str(state / "ca.crt")]
        words += ["--policy", "policy.yaml", "--state", f"state-{name}"]
        start(name, "client", *words)
    until((state / control.NAME).exists, "the socket is there")
    config = from_file(tmp_path / "run.yaml", [])
    submitted = control.ask(state, "submit", config={**config, "out": "x"})
    out = Path(submitted["folder"])
    lines = out / "rounds.jsonl"
    until(lambda: lines.exists() and len(lines.read_text().splitlines()) >= 2, "two rounds")
    server.send_signal(signal.SIGKILL)
    server.wait()
    again = start("server", *serve[:-1], f"127.0.0.1:{listened}")

    def ended() -> bool:
        with suppress(control.NoServer):
            return bool(control.ask(state, "runs")[0]["state"] != "going")
        return False

    until(ended, "the run ends")
    assert control.ask(state, "runs")[0]["state"] == "done", (tmp_path / "server.out").read_text()
    again.terminate()
    assert again.wait(60) == 0

    alone = {"engine": {**config["engine"], "devices": "cpu", "workers": 1}}
    simulate(tmp_path / "alone", {**config, **alone}, drawn=False)
    checkpoints = tmp_path / "alone" / "checkpoints"
    names = sorted(path.name for path in checkpoints.glob("round_*.safetensors"))
    assert len(names) == 6
    for name in names:
        one, other = (read_tensors(run / "checkpoints" / name) for run in (tmp_path / "alone", out))
        assert one.keys() == other.keys()
        assert all(one[key].tobytes() == other[key].tobytes() for key in one), name
