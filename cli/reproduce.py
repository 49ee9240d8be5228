"""``fedshift reproduce``: from a paper's number to its table, claims and files."""

from __future__ import annotations

import importlib
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from rich.console import Console

from fedshift import UserError, __version__
from fedshift.papers import NUMBERS, PAPERS
from fedshift.papers.bench import Bench, Paper, Preset
from fedshift.papers.result import Reproduction, render, store
from fedshift.protocol.settings import suggest
from fedshift.server.lock import alone_in


def reproduce(
    number: str, seeds: str, preset: str, out: Path | None, workers: int | None, console: Console
) -> None:
    """Run every arm of the paper on every seed; print and store what came of it.

    ``seeds`` is a list such as "0,1,2"; ``out`` defaults to ``reproductions/NN``. Repeated in the
    same folder, it goes on where it was interrupted. Raises :class:`UserError` for a paper, preset
    or seed that is none.
    """
    paper = load_paper(number)
    chosen = _preset(preset)
    bench = Bench(out or Path("reproductions") / paper.number, chosen, workers, console)
    start = time.monotonic()
    with alone_in(bench.out):
        tables = {seed: paper.measure(bench, seed) for seed in seed_list(seeds)}
        result = Reproduction(
            paper,
            chosen,
            tables,
            tuple(bench.arms),
            time.monotonic() - start,
            _versions(),
        )
        store(result, bench.out)
    console.print(render(result))
    console.print(f"stored in {bench.out}")


def load_paper(number: str) -> Paper:
    """The paper's module; raises :class:`UserError` for a number that has none."""
    if number not in NUMBERS:
        known = "; ".join(f"{known} ({PAPERS[name]})" for known, name in NUMBERS.items())
        raise UserError(f"paper {number} cannot be reproduced; choose one of {known}")
    module = importlib.import_module(f"fedshift.papers.{NUMBERS[number]}")
    paper = module.PAPER
    assert isinstance(paper, Paper)
    return paper


def _preset(name: str) -> Preset:
    for preset in get_args(Preset):
        if name == preset:
            return preset
    raise UserError(f"--preset {name} is unknown{suggest(name, get_args(Preset))}")


def seed_list(text: str) -> Sequence[int]:
    """Whole numbers from 0, each once."""
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UserError(f"--seeds {text} is no list of whole numbers; write for example 0,1,2")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text} names a seed twice; name each once")
    return seeds


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "numpy", "flwr")}
    return {"fedshift": __version__, "python": platform.python_version(), **packages}
