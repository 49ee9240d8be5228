"""What a reproduction found: measured, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from fedshift import __version__
from fedshift.papers.bench import Arm, Bench, Claim, Paper, Preset, Table
from fedshift.protocol.lock import alone_in
from fedshift.protocol.storage import write_atomic
from fedshift.protocol.words import count

NOTHING = "–"


@dataclass(frozen=True)
class Reproduction:
    """A paper's table as measured, one for each seed. ``versions`` names what computed it."""

    paper: Paper
    preset: Preset
    tables: dict[int, Table]
    arms: tuple[Arm, ...]
    seconds: float
    versions: dict[str, str]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in the order asked for."""
        return tuple(self.tables)

    @property
    def command(self) -> str:
        """The command that measures the same."""
        seeds = ",".join(map(str, self.seeds))
        preset = "" if self.preset == "small" else f" --preset {self.preset}"
        return f"fedshift reproduce {self.paper.number}{preset} --seeds {seeds}"

    def held(self, claim: Claim) -> dict[int, bool]:
        """Whether ``claim`` held, by seed."""
        return {seed: bool(claim.holds(table)) for seed, table in self.tables.items()}

    def values(self, row: str, column: str) -> list[float]:
        """What was measured, in the order of the seeds; nan where a seed has none."""
        return [table.get(row, {}).get(column, math.nan) for table in self.tables.values()]

    def blocks(self) -> Iterator[tuple[str, list[tuple[str, float, list[float]]]]]:
        """For each column of the table its rows: name, published value and measured values. What
        was measured comes first, in its own order; rows without any value are left out."""
        tables = [*self.tables.values(), self.paper.published]
        rows = _names(tables)
        for column in _names(cells for table in tables for cells in table.values()):
            lines = [
                (
                    row,
                    self.paper.published.get(row, {}).get(column, math.nan),
                    self.values(row, column),
                )
                for row in rows
            ]
            yield column, [line for line in lines if not _empty(line[1], *line[2])]

    @property
    def spent(self) -> str:
        """How long it took, in words."""
        reused = sum(arm.seconds is None for arm in self.arms)
        minutes, seconds = divmod(round(self.seconds), 60)
        took = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        there = f", {reused} of them finished before" if reused else ""
        return f"{count(len(self.arms), 'run')} in {took}{there}"

    @property
    def problems(self) -> list[str]:
        """What failed or was rejected in the runs: the numbers are to be read with these."""
        return [
            f"seed {arm.seed}, {arm.name}: {problem}"
            for arm in self.arms
            for problem in arm.problems
        ]


def reproduce(paper: Paper, bench: Bench, seeds: Sequence[int]) -> Reproduction:
    """Run every arm of ``paper`` on every seed, and store what came of it in the bench's folder.

    Repeated in the same folder, it goes on where it was interrupted.
    """
    start = time.monotonic()
    with alone_in(bench.out):
        tables = {seed: paper.measure(bench, seed) for seed in seeds}
        spent = time.monotonic() - start
        versions = {name: version(name) for name in ("torch", "numpy", "flwr")}
        versions |= {"fedshift": __version__, "python": platform.python_version()}
        result = Reproduction(paper, bench.preset, tables, tuple(bench.arms), spent, versions)
        store(result, bench.out)
    return result


def _empty(*values: float) -> bool:
    return all(math.isnan(value) for value in values)


def _names(tables: Iterable[Iterable[str]]) -> list[str]:
    """The keys of all mappings, each once, in order of appearance."""
    return list(dict.fromkeys(name for table in tables for name in table))


def number(value: float) -> str:
    """Three decimals up to 10 and two above; two digits of what is too small for that."""
    if math.isnan(value):
        return NOTHING
    if 0 < abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    """``mean ± sd`` (n - 1) of the values that there are; a single one as it is."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return NOTHING
    mean = number(statistics.fmean(known))
    return f"{mean} ± {number(statistics.stdev(known))}" if len(known) > 1 else mean


def word(held: bool) -> str:
    """``held`` or ``NOT held``."""
    return "held" if held else "NOT held"


def verdict(held: Sequence[bool]) -> str:
    """``held in every seed``, ``NOT held``, or in how many of them."""
    if all(held):
        return "held" if len(held) == 1 else "held in every seed"
    return f"held in {sum(held)} of {len(held)}" if any(held) else "NOT held"


def markdown(result: Reproduction) -> str:
    """The same as a page of ``docs/papers``."""
    paper = result.paper
    lines = [f"# {paper.number} {paper.title}", "", paper.citation, ""]
    lines += [f"`{result.command}`: {result.spent}.", ""]
    for column, rows in result.blocks():
        lines += _markdown_table(
            [column, "paper", "ours", "by seed"],
            [
                [row, number(published), spread(found), " ".join(map(number, found))]
                for row, published, found in rows
            ],
            rule="--:",
        )
    lines += _markdown_table(
        ["claim", *(f"seed {seed}" for seed in result.seeds), "in all"],
        [
            [claim.text, *(word(each) for each in held.values()), verdict([*held.values()])]
            for claim in paper.claims
            for held in [result.held(claim)]
        ],
    )
    if paper.note:
        lines += [paper.note, ""]
    if result.problems:
        lines += ["What failed or was rejected in these runs:", ""]
        lines += [f"- {problem}" for problem in result.problems]
        lines += [""]
    return "\n".join(lines)


def _markdown_table(
    head: Sequence[str], body: Sequence[Sequence[str]], rule: str = "---"
) -> list[str]:
    """``rule`` is that of all columns but the first."""
    lines = [head, ["---"] + [rule] * (len(head) - 1), *body]
    return [*("| " + " | ".join(_escaped(line)) + " |" for line in lines), ""]


def _escaped(cells: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|").replace("<", "\\<") for cell in cells]


def store(result: Reproduction, out: Path) -> None:
    """Write ``reproduction.json``, with all numbers, and ``reproduction.md`` into ``out``."""
    paper = result.paper
    found = {
        "paper": paper.number,
        "title": paper.title,
        "citation": paper.citation,
        "command": result.command,
        "preset": result.preset,
        "seconds": round(result.seconds, 1),
        "versions": result.versions,
        "published": _without_nan(paper.published),
        "measured": {seed: _without_nan(table) for seed, table in result.tables.items()},
        "claims": [
            {"text": claim.text, "held": result.held(claim)} for claim in result.paper.claims
        ],
        "runs": [asdict(arm) for arm in result.arms],
    }
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(out / "reproduction.json", text + "\n")
    write_atomic(out / "reproduction.md", markdown(result))


def _without_nan(table: Table) -> dict[str, dict[str, float | None]]:
    """JSON knows no nan: null instead."""
    return {
        row: {column: value if math.isfinite(value) else None for column, value in cells.items()}
        for row, cells in table.items()
    }
