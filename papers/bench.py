"""What a reproduced paper is: the arms of its comparison, its own table, and its claims.

A module such as ``p01_unet_gan`` defines ``PAPER``. Its ``measure`` runs the arms on one seed
through a :class:`Bench` and returns the paper's table as measured; each claim is then judged on
that table.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedshift import UserError
from fedshift.papers import NUMBERS, PAPERS
from fedshift.protocol.words import count
from fedshift.runs import earlier
from fedshift.runs.config import Config, load
from fedshift.runs.federation import open_federation
from fedshift.runs.simulate import run_folder
from fedshift.runs.stored import read_config
from fedshift.runs.watching import Tell, Watch, silent, unwatched
from fedshift.server import checkpoint
from fedshift.server.report.run import read_run

Preset = Literal["small", "paper"]
Table = dict[str, dict[str, float]]
"""Row -> column -> value, in the order to be printed; nan, or absent, where there is none."""


@dataclass(frozen=True)
class Claim:
    """A claim of direction. ``holds`` judges it on the table of one seed; a comparison with nan
    is false, so a claim about what could not be measured does not hold."""

    text: str
    holds: Callable[[Table], bool]


@dataclass(frozen=True)
class Paper:
    """One paper's comparison.

    ``published`` is the paper's own table; a row or column of the same name in what ``measure``
    returns is printed beside it. ``note`` says what a reader must know to compare the two.
    """

    number: str
    title: str
    citation: str
    published: Table
    measure: Callable[[Bench, int], Table]
    claims: tuple[Claim, ...]
    note: str = ""


@dataclass(frozen=True)
class Arm:
    """One run of a reproduction. ``seconds`` is None where a finished run was used again;
    ``problems`` says what failed or was rejected in it."""

    name: str
    seed: int
    overrides: tuple[str, ...]
    seconds: float | None
    problems: tuple[str, ...]


@dataclass
class Bench:
    """Runs a paper's arms, each in a run folder of its own: ``out/seed_0/NAME``."""

    out: Path
    preset: Preset = "small"
    workers: int | None = None
    """Worker processes; None for as many as are of use."""
    tell: Tell = silent
    watch: Watch = unwatched
    """Watches each arm."""
    arms: list[Arm] = field(default_factory=list)
    """What was run, in order."""

    def simulate(self, name: str, seed: int, overrides: Sequence[str]) -> Path:
        """Run ``fedshift simulate OVERRIDES`` with this ``seed`` and preset; return its folder, the
        last part of which is ``name``.

        A finished run of the same config is used as it is, an interrupted one is gone on with.
        Raises :class:`UserError` when the folder holds a run of another config.
        """
        folder = self.out / f"seed_{seed}" / name
        config = self._config(folder, seed, overrides)
        start = time.monotonic()
        reused = _finished(folder, config)
        earlier.complete(folder)
        if not reused:
            run_folder(folder, config, watch=self.watch)
        seconds = None if reused else time.monotonic() - start
        problems = tuple(
            f"{problem.site} {problem.kind} {count(len(problem.rounds), 'time')}: {problem.reason}"
            for problem in read_run(folder).problems
        )
        self.arms.append(Arm(name, seed, tuple(overrides), seconds, problems))
        took = "was finished" if seconds is None else f"{seconds:.0f} s"
        self.tell(f"seed {seed}, {name}: {took}")
        for problem in problems:
            self.tell(f"  {problem}")
        return folder

    def _config(self, folder: Path, seed: int, overrides: Sequence[str]) -> Config:
        preset = [] if any(text.startswith("preset=") for text in overrides) else [self.preset]
        workers = [] if self.workers is None else [f"engine.workers={self.workers}"]
        config = load(
            [*(f"preset={name}" for name in preset), *overrides, f"seed={seed}", *workers]
        )
        # Not in Hydra's grammar, where a comma in a folder's name would mean a choice.
        config |= {"out": str(folder), "resume": True}
        federation, _ = open_federation(config)
        config["federation"]["name"] = federation.name
        return config

    def rows(self, run: Path) -> list[dict[str, Any]]:
        """The rows of a run's ``cross_site.csv`` (docs/run_folder.md)."""
        return read_run(run).cross_site

    def scores(
        self, run: Path, *, model: str = "global", trained_on: str = "all", metric: str = "dice"
    ) -> dict[str, float]:
        """A model's test score at each site: the mean over structures, by the site's name.

        Raises :class:`UserError` when the run holds no such model.
        """
        found: dict[str, list[float]] = {}
        for row in self.rows(run):
            if (row["model"], row["trained_on"], row["metric"]) == (model, trained_on, metric):
                found.setdefault(row["site"], []).append(row["mean"])
        if not found:
            raise UserError(
                f"{run} holds no {metric} of the {model} model of {trained_on}; its report.html "
                "says what is missing"
            )
        return {site: math.fsum(means) / len(means) for site, means in sorted(found.items())}


def load_paper(number: str) -> Paper:
    """The paper's module; raises :class:`UserError` for a number that has none."""
    if number not in NUMBERS:
        known = "; ".join(f"{known} ({PAPERS[name]})" for known, name in NUMBERS.items())
        raise UserError(f"paper {number} cannot be reproduced; choose one of {known}")
    paper = importlib.import_module(f"fedshift.papers.{NUMBERS[number]}").PAPER
    assert isinstance(paper, Paper)
    return paper


def _finished(folder: Path, config: Config) -> bool:
    """Whether ``folder`` holds the whole run that ``config`` describes."""
    stored = folder / "config.yaml"
    if not stored.exists():
        return False
    if checkpoint.fingerprint(read_config(stored)) != checkpoint.fingerprint(config):
        raise UserError(
            f"{folder} holds a run with other settings; choose another --out or remove that folder"
        )
    # The page is written last.
    return (folder / "cross_site.csv").exists() and (folder / "report.html").exists()
