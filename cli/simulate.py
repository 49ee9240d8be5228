"""``fedshift simulate``: a whole federation on this machine, from config to report."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from fedshift import UserError
from fedshift.cli import examples
from fedshift.cli.config import Config, load
from fedshift.cli.engine import run_engine
from fedshift.cli.progress import Screen
from fedshift.cli.runs import build_plan, open_federation, read_config
from fedshift.cli.settings import EngineSettings, RunSettings, output_folder
from fedshift.client import ledger
from fedshift.client.policy import Policy
from fedshift.client.simulation import LocalSites
from fedshift.protocol.storage import keep_lines, write_atomic
from fedshift.server import checkpoint, report, tables
from fedshift.strategies.pooled import Pooled


def simulate(overrides: Sequence[str]) -> None:
    """Train, score and report; prints the summary."""
    config = load(overrides)
    settings = RunSettings.from_config(config)
    federation, _ = open_federation(config)
    config["federation"]["name"] = federation.name
    out = output_folder(config)
    console = Console()
    with alone_in(out):
        if settings.protocol == "together":
            run_folder(out, config, console)
        else:
            training = [site.name for site in federation.sites if site.role == "train"]
            _in_turn(out, config, training, console)
    console.print(report.summary(out))


def run_folder(out: Path, config: Config, console: Console) -> None:
    """Fill one run folder, or what is left of it."""
    federation, data = open_federation(config)
    settings = RunSettings.from_config(config)
    engine = EngineSettings.from_config(config)
    policy = Policy.from_config(config["policy"])
    identity = checkpoint.fingerprint(config)
    plan = build_plan(out, config, federation.structures, identity)
    done = _open_folder(out, config, identity, resume=settings.resume)
    sites = LocalSites(
        federation=federation,
        data=data,
        policy=policy,
        folder=plan.checkpoints / "sites",
        seed=settings.seed,
        pooled=any(isinstance(strategy, Pooled) for strategy in plan.strategies),
        amp=engine.amp,
    )
    if (out / "cross_site.csv").exists():
        console.print(f"{out} is finished; drawing its report again", highlight=False)
    else:
        egress = _Egress(sites, out / "egress.jsonl", done)
        plan = replace(plan, after_round=egress.collect)
        title = f"{federation.name}, {config['method']['name']}, {config['strategy']['name']}"
        with Screen(console, title) as screen:
            run_engine(plan, sites, engine, screen)
    examples.draw(out, sites)
    report.build(out)


class _Egress:
    """Gathers the simulated sites' ledgers into the run's ``egress.jsonl``, round by round."""

    def __init__(self, sites: LocalSites, path: Path, done: int) -> None:
        """Forget what left after round ``done``, which a resumed run repeats."""
        sites.roll_back(done)
        keep_lines(path, ledger.left_by(done))
        self._sites = sites
        self._path = path
        self._positions = sites.ledger_sizes()

    def collect(self) -> None:
        """Append the lines that are new since the last call."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._sites.egress(self._positions))


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold ``out`` against a second run; the lock goes with the process, however it ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"{out} cannot be used as a folder ({error.strerror}); choose another out=DIR"
        ) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f"another run is writing to {out}; choose another out=DIR") from error
    finally:
        os.close(folder)


_BEGUN = {"config.yaml", "checkpoints", "rounds.jsonl", "egress.jsonl"}
"""All that a run's folder holds before its first round is finished."""


def _open_folder(out: Path, config: Config, identity: str, *, resume: bool) -> int:
    """Make ``out`` ready; return how many rounds of this run it already holds.

    A run that never finished a round is begun again. Raises :class:`UserError` when ``out`` holds
    something else, which is left as it is.
    """
    stored = out / "config.yaml"
    done = checkpoint.last_round(out / "checkpoints")
    if done or (out / "folds").exists():
        if not resume:
            raise UserError(
                f"{out} already holds a run; add resume=true to go on with it or choose another "
                "out=DIR"
            )
        earlier = read_config(stored)
        if checkpoint.fingerprint(earlier) != identity:
            changed = sorted(_differing(checkpoint.deciding(earlier), checkpoint.deciding(config)))
            raise UserError(
                f"{out} holds a run with another config ({', '.join(changed[:5])}); repeat that "
                "run's options or choose another out=DIR"
            )
        for leftover in out.rglob(".*.tmp"):  # A kill came between writing and renaming.
            leftover.unlink()
        return done
    out.mkdir(parents=True, exist_ok=True)
    held = {path.name for path in out.iterdir() if path.suffix != ".tmp"}
    if held and (stored.name not in held or held - _BEGUN):
        raise UserError(f"{out} is not empty and holds no run; choose another out=DIR")
    if held:
        read_config(stored)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    for name in ("rounds.jsonl", "egress.jsonl"):
        (out / name).unlink(missing_ok=True)
    write_atomic(stored, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return 0


def _differing(first: Any, second: Any, prefix: str = "") -> set[str]:
    """The dotted keys whose values differ."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return set() if first == second else {prefix.removesuffix(".")}
    keys = first.keys() | second.keys()
    return set().union(
        *(_differing(first.get(key), second.get(key), f"{prefix}{key}.") for key in keys)
    )


def _in_turn(out: Path, config: Config, training: list[str], console: Console) -> None:
    """Leave each of the ``training`` sites out in turn, or hide its labels; score the models of the
    others on it.

    Each fold is a run folder of its own under ``folds/``. The tables of ``out`` hold, for every
    site, the models that never saw it, or never its labels.
    """
    protocol = config["protocol"]
    if len(training) < 2:
        raise UserError(
            f"protocol={protocol} needs at least two training sites; "
            f"the federation has {len(training)}"
        )
    _open_folder(out, config, checkpoint.fingerprint(config), resume=config["resume"])
    cases: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    for number, name in enumerate(training, start=1):
        fold = out / "folds" / name
        fold_config = {**config, "out": str(fold), "protocol": "together"}
        if protocol == "leave_one_site_out":
            without, fold_config["left_out"] = name, name
        else:
            without = f"the labels of {name}"
            hidden = sorted({*config["data"]["unlabelled_sites"], name})
            fold_config["data"] = {**config["data"], "unlabelled_sites": hidden}
        console.print(f"fold {number} of {len(training)}: without {without}", highlight=False)
        run_folder(fold, fold_config, console)
        cases += [row for row in tables.read_cases(fold / "cases.csv") if row["site"] == name]
        found = tables.read_cross_site(fold / "cross_site.csv")
        summary += [row for row in found if row["site"] == name]
    tables.write_cases(out / "cases.csv", cases)
    tables.write_cross_site(out / "cross_site.csv", summary)
    report.build(out)
