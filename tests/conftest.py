"""What the tests share: a small federation, runs of it made once, and the command in process."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TINY = (
    "federation=cardiac_phantom",
    "federation.subjects=6",
    "federation.slices=2",
    "federation.size=32",
    "method.depth=3",
    "method.width=4",
    "rounds=2",
    "local_steps=2",
    "engine.devices=cpu",
    "engine.workers=1",
)
"""Three phantom vendors that train and one unseen, at a size that trains in a second."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of it, and leave the other core to others."""
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSHIFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _server_identity() -> None:
    """Flower builds no message in a process that is no task of a run."""
    from fedshift.protocol.flower import identify_server

    identify_server(1)


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """The overrides of the small federation."""
    return TINY


@pytest.fixture(scope="session")
def simulate() -> Callable[..., Path]:
    """Run the small federation into a folder, with further overrides, in this process."""
    from fedshift.cli.simulate import simulate as run

    def call(out: Path, *overrides: str) -> Path:
        run([*TINY, f"out={out}", *overrides])
        return out

    return call


@pytest.fixture(scope="session")
def simulate_undrawn() -> Callable[..., Path]:
    """The same without baselines, figures and page, which take longer than the training."""

    from fedshift.protocol.lock import alone_in
    from fedshift.runs.config import load
    from fedshift.runs.simulate import run

    def call(out: Path, *overrides: str) -> Path:
        with alone_in(out):
            config = load([*TINY, "baselines=[]", *overrides])
            run(out, config, drawn=False)
        return out

    return call


@pytest.fixture(scope="session")
def reference(simulate: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished FedAvg run with both baselines, one worker. Not to be written to."""
    return simulate(tmp_path_factory.mktemp("reference") / "run", "strategy=fedavg")


@pytest.fixture(scope="session")
def fedbn_reference(
    simulate: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished FedBN run on a net with batch normalisation, one worker."""
    out = tmp_path_factory.mktemp("fedbn") / "run"
    return simulate(out, "strategy=fedbn", "method.norm=batch", "baselines=[]")


@pytest.fixture(scope="session")
def cut_short() -> Callable[..., Path]:
    """Copy a finished run as if it had been killed when round ``last`` was done."""

    def call(whole: Path, copy: Path, last: int = 1) -> Path:
        shutil.copytree(whole, copy)
        for path in (copy / "checkpoints").glob("round_*"):
            if int(path.stem.removeprefix("round_")) > last:
                path.unlink()
        (copy / "cross_site.csv").unlink()
        return copy

    return call


@pytest.fixture(scope="session")
def begin() -> Callable[..., Any]:
    """Bind a strategy to the sites of these names, which train ``steps`` steps a round."""
    from fedshift.protocol.messages import Action, Instruction

    def call(strategy: Any, sites: Sequence[str], tensors: Any, steps: int = 1) -> Any:
        nodes = {site: number + 10 for number, site in enumerate(sites)}
        strategy.begin(nodes, tensors, Instruction(action=Action.NAME, seed=0, steps=steps))
        return strategy

    return call


@pytest.fixture(scope="session")
def fold() -> Callable[..., Any]:
    """One round of a strategy from ``current``, as through Flower: ``sent`` are the arrays by site,
    ``examples`` and ``metrics`` what the sites say beside; None when the model stays as it was."""
    from fedshift.protocol import messages as protocol
    from fedshift.protocol.flower import ConfigRecord, Message, RecordDict

    def call(
        strategy: Any,
        current: Any,
        sent: Any,
        *,
        examples: Any = None,
        metrics: Any = None,
        number: int = 1,
    ) -> Any:
        def replies() -> Iterator[Message]:
            for site, arrays in sent.items():
                networks = sorted({name.split("/")[0] for name in arrays})
                content = protocol.answer(
                    site,
                    arrays=protocol.pack_arrays(arrays),
                    metrics=(metrics or {}).get(site, {}),
                    details={"trained": dict.fromkeys(networks, (examples or {}).get(site, 1))},
                )
                asked = Message(
                    RecordDict(), dst_node_id=strategy.sites[site], message_type="train"
                )
                yield Message(content, reply_to=asked)

        packed = protocol.pack_arrays(current)
        list(strategy.configure_train(number, packed, ConfigRecord(), None))
        model, _ = strategy.aggregate_train(number, replies())
        return None if model is None else protocol.unpack_arrays(model)

    return call


@pytest.fixture
def pool(tiny: tuple[str, ...], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """The inline engine over sites of these names that hold no data; see :mod:`kit.scripted`."""
    from kit.scripted import scripted_sites

    from fedshift.server.engines.inline import InlineGrid

    opened = []

    def make(*names: str, workers: int = 2) -> InlineGrid:
        sites = scripted_sites(tiny, tmp_path / "sites", *names)
        opened.append(InlineGrid(sites, ["cpu"] * workers, 1))
        return opened[-1]

    yield make
    for grid in opened:
        grid.__exit__()


def _round_line(text: str) -> dict[str, Any]:
    """A line of rounds.jsonl without the times, which no two runs share."""

    def timeless(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: timeless(value) for key, value in node.items() if key != "seconds"}
        return node

    return timeless(json.loads(text))


def _round_rows(text: str) -> list[dict[str, str]]:
    """The rows of rounds.csv without the times."""
    rows = list(csv.DictReader(text.splitlines()))
    return [{name: row[name] for name in row if name != "seconds"} for row in rows]


@pytest.fixture(scope="session")
def contents() -> Callable[..., dict[str, Any]]:
    """What a run folder holds, by relative path: bytes, and the rounds without their times.

    Left out are the page and the curves' figure, which show times, and the config, which names
    the folder.
    """

    def read(run: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in sorted(run.rglob("*")):
            name = path.relative_to(run).as_posix()
            if path.is_dir() or name in ("report.html", "config.yaml"):
                continue
            if path.name == "rounds.jsonl":
                found[name] = [_round_line(line) for line in path.read_text().splitlines()]
            elif path.name == "rounds.csv":
                found[name] = _round_rows(path.read_text())
            else:
                found[name] = path.read_bytes()
        return found

    return read


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run ``fedshift ARGUMENTS`` in this process, exactly as the console script would."""
    from fedshift import cli

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fedshift", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real image sets; skips where they are absent."""
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    root = Path(os.environ.get("FEDSHIFT_DATA") or beside)
    if not root.is_dir():
        pytest.skip(f"no real images at {root}; set FEDSHIFT_DATA")
    return root
