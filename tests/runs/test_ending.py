"""How a run ends when its coordinator does: no worker trains on, and none writes into the run that
goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kit.launching import launch
from kit.waiting import until

from fedshift import UserError
from fedshift.protocol import lock
from fedshift.protocol.lock import alone_in


def members(session: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def ledgers(out: Path) -> dict[str, int]:
    """How long each site's ledger is."""
    found = (out / "checkpoints" / "sites").glob("*/egress.jsonl")
    return {path.parent.name: path.stat().st_size for path in found}


@pytest.fixture
def running(
    tiny: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Any, Path]]:
    """A run with two workers in the middle of its second round."""
    out = tmp_path / "run"
    options = getattr(request, "param", ("rounds=50", "local_steps=20"))
    process = launch(out, (*tiny, "strategy=fedavg", "baselines=[]", "engine.workers=2", *options))
    until((out / "checkpoints" / "round_0001.json").exists)
    assert len(members(process.pid)) >= 3
    yield process, out
    for left in members(process.pid):
        left.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_in_a_sentence_with_all_its_workers(
    running: tuple[Any, Path], number: signal.Signals
) -> None:
    process, _ = running
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    word = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}[number]
    assert told.decode().splitlines() == [
        f"fedshift: {word}; the same command goes on from the last round (simulate: with "
        "resume=true)"
    ]
    until(lambda: not members(process.pid), 5)


@pytest.mark.parametrize("running", [("rounds=2", "local_steps=2")], indirect=True)
def test_a_run_whose_coordinator_alone_was_killed_goes_on_at_once_to_the_same_bytes(
    running: tuple[Any, Path],
    simulate_undrawn: Callable[..., Path],
    contents: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    process, out = running
    os.kill(process.pid, signal.SIGKILL)
    simulate_undrawn(out, "resume=true")
    assert contents(out) == contents(simulate_undrawn(tmp_path / "whole"))


def test_the_folder_stays_locked_as_long_as_a_worker_lives(
    running: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, out = running
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.2)
    workers = psutil.Process(process.pid).children(recursive=True)
    for worker in workers:
        worker.suspend()  # As one that is deep in a computation.
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(UserError, match="another run is writing to"), alone_in(out):
        pass
    for worker in workers:
        worker.resume()
    monkeypatch.setattr(lock, "_PATIENCE_S", 10.0)
    with alone_in(out):
        before = ledgers(out)
        until(lambda: not members(process.pid), 5)
        assert ledgers(out) == before
