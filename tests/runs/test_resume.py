"""Exact resume: a run that was killed and went on equals one that never was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.launching import launch

STRATEGY = {
    "fedavg": ("strategy=fedavg",),
    "fedbn": ("strategy=fedbn", "method.norm=batch", "baselines=[]"),
}


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> bool:
    """Kill the whole session with SIGKILL as soon as ``ready``; False when it ended before."""
    end = time.monotonic() + 60
    while not ready():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return True


def egress_of_the_end(out: Path) -> bool:
    """Whether the evaluation after the last round has begun."""
    ledgers = (out / "checkpoints" / "sites").glob("*/egress.jsonl")
    return any('"case metrics"' in path.read_text() for path in ledgers)


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "before any round": lambda out: (out / "checkpoints" / "sites.json").exists(),
    "after round 1": lambda out: (out / "checkpoints" / "round_0001.json").exists(),
    "in the evaluation": egress_of_the_end,
    "before the report": lambda out: (out / "cross_site.csv").exists(),
}


@pytest.mark.parametrize(
    ("name", "moment"), [*(("fedavg", moment) for moment in MOMENTS), ("fedbn", "after round 1")]
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    name: str,
    moment: str,
    tiny: tuple[str, ...],
    simulate: Callable[..., Path],
    contents: Callable[..., dict[str, Any]],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    expected = contents(
        request.getfixturevalue("reference" if name == "fedavg" else "fedbn_reference")
    )
    out = tmp_path / "run"
    process = launch(out, (*tiny, *STRATEGY[name]))
    assert kill_when(process, lambda: MOMENTS[moment](out)), "it ended before it could be killed"
    simulate(out, *STRATEGY[name], "resume=true")
    found = contents(out)
    assert found.keys() == expected.keys()
    for path, content in expected.items():
        if path != "figures/curves.png":  # it may show times
            assert found[path] == content, path


@pytest.mark.parametrize(
    "strategy",
    [
        ("strategy=fedadam",),
        ("strategy=flower", "strategy.name=FedAdam"),
        ("strategy=scaffold", "strategy.fraction=0.6"),
        ("strategy=feddyn", "strategy.fraction=0.6"),
        ("strategy=moon", "strategy.fraction=0.6"),
        ("strategy=feddg", "strategy.fraction=0.6"),
    ],
    ids=" ".join,
)
def test_a_strategy_goes_on_with_what_it_and_its_sites_remembered(
    strategy: tuple[str, ...],
    simulate_undrawn: Callable[..., Path],
    cut_short: Callable[..., Path],
    contents: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    whole = simulate_undrawn(tmp_path / "whole", *strategy)
    lines = [json.loads(line) for line in (whole / "rounds.jsonl").read_text().splitlines()]
    assert not any(line["failed"] or line["rejected"] or line["skipped"] for line in lines)
    cut = cut_short(whole, tmp_path / "cut")
    simulate_undrawn(cut, *strategy, "resume=true")
    assert contents(cut) == contents(whole)


def test_what_a_kill_left_half_written_is_swept_away(
    reference: Path,
    simulate: Callable[..., Path],
    contents: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """Killed in round 2 between its tensors and its json, in the middle of lines and files."""
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    for name in ("cases.csv", "cross_site.csv", "shift.csv", "report.html"):
        (out / name).unlink()
    shutil.rmtree(out / "figures")
    checkpoints = out / "checkpoints"
    (checkpoints / "evaluation.json").unlink()
    (checkpoints / "round_0002.json").unlink()
    (checkpoints / "round_0002.safetensors").write_bytes(b"half")
    (checkpoints / ".round_0002.json.999999.tmp").write_text('{"rou')
    (out / ".cases.csv.tmp").write_text("model,tr")
    with (out / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "seco')
    with (out / "egress.jsonl").open("a") as file:
        file.write('{"site":"vendor_a","rou')
    simulate(out, "strategy=fedavg", "resume=true")
    expected, found = contents(reference), contents(out)
    assert found.keys() == expected.keys()
    for path, content in expected.items():
        if path != "figures/curves.png":
            assert found[path] == content, path


def test_more_workers_may_go_on_with_a_run(
    reference: Path,
    tiny: tuple[str, ...],
    simulate: Callable[..., Path],
    contents: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    process = launch(out, (*tiny, "strategy=fedavg", "engine.workers=2"))
    assert kill_when(process, lambda: MOMENTS["after round 1"](out))
    simulate(out, "strategy=fedavg", "engine.workers=1", "resume=true")
    expected, found = contents(reference), contents(out)
    for path, content in expected.items():
        if not path.endswith(".png"):
            assert found[path] == content, path
