"""A comparison's ranked table for papers: Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from fedshift.protocol.storage import write_atomic
from fedshift.protocol.words import short
from fedshift.server.comparison.ranking import Result, Standing
from fedshift.server.comparison.statistics import Estimate
from fedshift.server.comparison.words import (
    UNKNOWN_TEXT,
    gain,
    known,
    outcome,
    p_value,
    sentences,
)
from fedshift.server.report.words import format_bytes


def _columns(result: Result) -> dict[str, Callable[[Standing], str]]:
    """The columns of the printed tables, by heading; those without any value are left out."""
    comparison = result.comparison
    cell = comparison.headline.cell
    second = comparison.second
    shown: dict[str, Callable[[Standing], str]] = {
        "mean": lambda row: _with_interval(row.mean, cell),
        "worst site": lambda row: f"{_with_interval(row.worst, cell)} {row.worst_site}".rstrip(),
        "gap": lambda row: _with_interval(row.gap, cell),
        "unseen": lambda row: _with_interval(row.unseen, cell),
        "mean rank": lambda row: known(row.mean_rank, "{:.2f}".format),
        **({second.label: lambda row: second.cell(row.second)} if second else {}),
        "bytes": lambda row: known(row.bytes, format_bytes),
        "seconds": lambda row: known(row.seconds, "{:.1f}".format),
        "gain": lambda row: _with_interval(
            row.difference, lambda value: gain(value, comparison.headline)
        ),
        "p, subjects": lambda row: known(row.p_subjects_holm, p_value),
        "p, seeds": lambda row: known(row.p_seeds_holm, p_value),
    }
    return {
        name: text
        for name, text in shown.items()
        if any(text(row) != UNKNOWN_TEXT for row in result.standings)
    }


def _with_interval(found: Estimate, cell: Callable[[float], str]) -> str:
    """``0.812 [0.790, 0.834]``."""
    text = cell(found.value)
    return f"{text} [{cell(found.low)}, {cell(found.high)}]" if found.has_interval else text


def write_markdown(path: Path, result: Result) -> None:
    """Write ``comparison.md``: the result in words and as a table."""
    shown = _columns(result)
    heads = ["", "entrant", *shown, f"against {result.against}"]
    lines = [
        _markdown_line(heads),
        _markdown_line(["---:", "---", *["---:"] * len(shown), "---"]),
    ]
    lines += [
        _markdown_line(
            [
                str(row.place or "–"),
                row.title + _seeds(row),
                *(text(row) for text in shown.values()),
                outcome(row),
            ]
        )
        for row in result.standings
    ]
    said = _markdown(" ".join(sentences(result.standings, result.comparison.headline)))
    write_atomic(path, f"{said}\n\n" + "".join(lines) + f"\n{_caption(result)}\n")


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_markdown(cell) for cell in cells) + " |\n"


def _markdown(text: str) -> str:
    """``text`` on one line, in which neither a column nor an HTML element begins."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", short(text, len(text)).replace("|", "\\|"))


def write_latex(path: Path, result: Result) -> None:
    """Write ``comparison.tex``: a ``table*`` for the package ``booktabs``, best values bold."""
    shown = _columns(result)
    best = _best(result)
    lines = [
        " & ".join(
            [
                _latex(row.title + _seeds(row)),
                *(
                    f"\\textbf{{{_latex(text(row))}}}"
                    if row is best.get(name)
                    else _latex(text(row))
                    for name, text in shown.items()
                ),
                _latex(outcome(row)),
            ]
        )
        + r" \\"
        for row in result.standings
    ]
    heads = " & ".join(_latex(name) for name in ["entrant", *shown, f"against {result.against}"])
    body = "\n".join(lines)
    write_atomic(
        path,
        f"% needs \\usepackage{{booktabs}}\n\\begin{{table*}}\n\\centering\\footnotesize\n"
        f"\\caption{{{_latex(_caption(result))}}}\n"
        f"\\begin{{tabular}}{{l{'r' * len(shown)}l}}\n\\toprule\n{heads} \\\\\n\\midrule\n"
        f"{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table*}}\n",
    )


def _best(result: Result) -> dict[str, Standing]:
    """Which row is printed bold, by column."""
    ranked, comparison = result.ranked, result.comparison
    if len(ranked) < 2:
        return {}
    sign, second = comparison.headline.sign, comparison.second
    best = {
        "mean": ranked[0],
        "worst site": max(ranked, key=lambda row: sign * row.worst.value),
        "gap": min(ranked, key=lambda row: row.gap.value),
        "mean rank": min(ranked, key=lambda row: row.mean_rank),
    }
    if unseen := [row for row in ranked if row.unseen.known]:
        best["unseen"] = max(unseen, key=lambda row: sign * row.unseen.value)
    if second and second.better and (told := [row for row in ranked if not math.isnan(row.second)]):
        best[second.label] = max(told, key=lambda row: second.sign * row.second)
    return best


def _seeds(row: Standing) -> str:
    """How many of its cells the row is over, where some are missing."""
    return "" if row.seeds == row.cells else f" ({row.seeds} of {row.cells} seeds)"


def _caption(result: Result) -> str:
    label, against = result.comparison.headline.label, result.against
    told = "".join(f" {sentence}" for sentence in result.comparison.parts_told)
    if result.comparison.headline.whole:
        return (
            f"{label} of the whole test split; gains on {against}, with Holm-corrected p-values of "
            f"a t-test over seeds.{told}"
        )
    return (
        f"{label} on the test split with 95 % bootstrap intervals, subjects resampled within "
        f"sites; gains on {against}, with Holm-corrected p-values: a signed-rank test over "
        f"subjects, and a t-test over seeds where there are several.{told}"
    )


_LATEX = {
    "\\": r"\textbackslash{}",
    "–": "--",
    "·": r"$\cdot$",
    "<": "$<$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
