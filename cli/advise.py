"""``fedshift advise``: what to try next, why, and whether a comparison bears it out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedshift import UserError
from fedshift.cli.console import PlainConsole
from fedshift.cli.progress import Screen
from fedshift.cli.reproduce import seed_list
from fedshift.runs import earlier
from fedshift.runs.graded import advised
from fedshift.runs.sweep import SWEEP, read_sweep
from fedshift.server.advice.families import options
from fedshift.server.advice.rules import VERBS, Advice
from fedshift.server.advice.rules import advise as judge
from fedshift.server.comparison.advice import Checked, check
from fedshift.server.comparison.cells import Cell
from fedshift.server.comparison.words import gain, gain_interval
from fedshift.server.report.run import read_run


def advise(folder: Path) -> None:
    """Print the advice on a run or a comparison.

    Raises :class:`UserError` when ``folder`` is neither, or nothing in it is finished.
    """
    console = PlainConsole()
    earlier.complete(folder)
    if (folder / SWEEP).is_file():
        checked = check(_cells(folder))
        _print_advice(checked.advice, console)
        _print_check(checked, console)
        return
    run = read_run(folder)
    if run.in_turn:
        raise UserError(
            f"{folder} holds a fold for each site left out; name one of {folder / 'folds'}, or a "
            "run with protocol=together"
        )
    if not run.cross_site:
        raise UserError(f"{folder} is not finished; go on with it by resume=true")
    advice = judge(run.evidence)
    _print_advice(advice, console)
    if advice.first not in (None, "nothing"):
        tried = options(advice.first, advice)["strategy"][:2]
        console.print(
            Text(
                f"To check it: fedshift compare OPTIONS strategy={','.join(['fedavg', *tried])} "
                "seed=0,1,2 out=DIR with the options of this run, then fedshift advise DIR."
            )
        )


def grade(out: Path, seeds: str, workers: int | None) -> None:
    """Run the graded federations under ``out`` with each of ``seeds`` ("0,1,2"), those that are
    not finished; print each one's advice and the hit rate.

    Raises :class:`UserError` when ``seeds`` is no list of seeds.
    """
    numbers = seed_list(seeds)
    overrides = [] if workers is None else [f"engine.workers={workers}"]
    console = PlainConsole()
    table = _table("federation", "right advice")
    for seed in numbers:
        table.add_column(f"seed {seed}")
    hits = total = 0
    for graded, found in advised(out, numbers, overrides, console.tell, partial(Screen, console)):
        cells = []
        for advice in found.values():
            hit = advice.first == graded.right
            hits, total = hits + hit, total + 1
            cells.append("hit" if hit else Text(advice.first or "no advice", style="red"))
        table.add_row(graded.name, graded.right, *cells)
    console.print(table)
    console.print(
        f"{hits} of {total} advices are hits ({hits / total:.0%}): the right family comes first. "
        "A name is what was advised instead."
    )


def _cells(folder: Path) -> list[Cell]:
    """The comparison's cells; done are those whose last table is written."""
    found = []
    for name, settings in read_sweep(folder)["cells"].items():
        cell = folder / "cells" / name
        done = (cell / "cross_site.csv").exists()
        found.append(Cell(settings, cell, "done" if done else "left"))
    return found


def _print_advice(advice: Advice, console: Console) -> None:
    console.print(Text(f"Advice: {advice.headline}", style="bold"))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in advice.findings:
        said = Text.assemble((finding.question, "bold"), " ", finding.said)
        table.add_row(finding.answer, said)
    console.print(table)
    for family in advice.families:
        if family != "nothing":
            tried = options(family, advice).items()
            told = "; ".join(f"{key}={' or '.join(values)}" for key, values in tried)
            console.print(Text(f"To {VERBS[family]}: {told}."))
    for note in advice.notes:
        console.print(Text(note))


def _print_check(checked: Checked, console: Console) -> None:
    if len({advice.families for advice in checked.by_seed.values()}) > 1:
        told = "; ".join(
            f"seed {seed}: {', then '.join(advice.families) or 'none'}"
            for seed, advice in checked.by_seed.items()
        )
        console.print(Text(f"The seeds do not agree ({told})."))
    if checked.against:
        mean = f"mean {checked.measure.title}"
        table = _table("against FedAvg", "family", mean, "gain", "95 % interval", "")
        for item in checked.against:
            found = item.standing.difference
            table.add_row(
                Text(item.standing.label),
                ", ".join(sorted(item.families)),
                checked.measure.cell(item.standing.mean.value),
                gain(found.value, checked.measure),
                gain_interval(found, checked.measure) if found.has_interval else "",
                item.result,
            )
        console.print(table)
    console.print(Text(checked.verdict, style="bold"))


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name)
    return table
