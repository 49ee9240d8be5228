"""``fedshift reproduce``: a paper's table beside ours, its claims and the time, on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedshift import UserError
from fedshift.cli.console import PlainConsole
from fedshift.cli.progress import Screen
from fedshift.papers.bench import Bench, Preset, load_paper
from fedshift.papers.result import Reproduction, number, spread, verdict, word
from fedshift.papers.result import reproduce as measure
from fedshift.protocol.settings import suggest
from fedshift.runs.watching import unwatched


def reproduce(paper: str, seeds: str, preset: str, out: Path | None, workers: int | None) -> None:
    """Run every arm of the paper on every seed; print and store what came of it.

    ``seeds`` is a list such as "0,1,2"; ``out`` defaults to ``reproductions/NN``. Raises
    :class:`UserError` for a paper, preset or seed that is none.
    """
    console = PlainConsole()
    loaded = load_paper(paper)
    # Elsewhere than on a terminal the run's own lines would bury the result.
    watch = partial(Screen, console) if console.is_terminal else unwatched
    folder = out or Path("reproductions") / loaded.number
    bench = Bench(folder, _preset(preset), workers, console.tell, watch)
    console.print(render(measure(loaded, bench, seed_list(seeds))))
    console.print(f"stored in {folder}")


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


def render(result: Reproduction) -> RenderableType:
    """The paper's table beside ours, the claims, and the time, for 80 columns."""
    paper = result.paper
    parts: list[RenderableType] = [
        Text(f"{paper.number} {paper.title}", style="bold"),
        Text(paper.citation),
        Text(""),
    ]
    for column, lines in result.blocks():
        grid = _grid(column)
        grid.add_column("")
        for title in ("paper", "ours"):
            grid.add_column(title, justify="right", no_wrap=True)
        grid.add_column("by seed", justify="right")
        for row, published, found in lines:
            each = "  ".join(map(number, found)) if len(found) > 1 else ""
            grid.add_row(Text(row), number(published), spread(found), each)
        parts.append(grid)
    grid = _grid("Claims")
    grid.add_column("")
    for seed in result.seeds:
        grid.add_column(f"seed {seed}")
    grid.add_column("")
    for claim in paper.claims:
        held = result.held(claim)
        grid.add_row(
            Text(claim.text), *map(_colored, held.values()), Text(verdict([*held.values()]))
        )
    parts.append(grid)
    if paper.note:
        parts.append(Text(paper.note + "\n"))
    parts += [Text(problem, style="yellow") for problem in result.problems]
    return Group(*parts, Text(f"{result.spent}; preset {result.preset}."))


def _grid(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )


def _colored(held: bool) -> Text:
    return Text(word(held), style="" if held else "bold red")
