"""The files of a comparison that other programs read: CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_type_hints

from fedshift import UserError
from fedshift.protocol.storage import write_atomic
from fedshift.protocol.tables import cell_text, csv_text
from fedshift.protocol.words import short
from fedshift.server.comparison.ranking import Outcome, Result, Standing
from fedshift.server.comparison.statistics import Estimate
from fedshift.server.comparison.words import sentences
from fedshift.server.report.run import format_bytes

UNKNOWN_TEXT = "–"
ENDS = ("", "_low", "_high")
"""What an estimate's columns are called after: the value, and its 95 % interval."""

SITE_COLUMNS = (
    "entrant",
    "site",
    "vendor",
    "role",
    "subjects",
    *(f"{name}{end}" for name in ("dice", "difference") for end in ENDS),
    "hd95_mm",
)
"""``comparison_sites.csv``: one row an entrant and site; ``role`` is ``ranking`` or ``unseen``."""


def write_standings(path: Path, standings: Sequence[Standing]) -> None:
    """Write ``comparison.csv``: a row an entrant in the table's order, the fields of ``Standing``
    as columns (an estimate fills three); what is not known is empty."""
    lines = [_flat(row) for row in standings]
    _write(path, list(lines[0]), lines)


def _flat(row: Standing) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(row):
        value = getattr(row, item.name)
        flat |= _estimate(item.name, value) if isinstance(value, Estimate) else {item.name: value}
    return flat


def _estimate(name: str, found: Estimate) -> dict[str, float]:
    values = (found.value, found.low, found.high)
    return {f"{name}{end}": value for end, value in zip(ENDS, values, strict=True)}


def read_standings(path: Path) -> list[Standing]:
    """Read what :func:`write_standings` wrote; raises :class:`fedshift.UserError` when the file is
    not there or not whole."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_standing(line) for line in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not the table of a comparison ({error}); run the comparison again to "
            "write it anew"
        ) from error


def _standing(line: Mapping[str, str]) -> Standing:
    read: dict[Any, Callable[[str], Any]] = {
        str: cell_text,
        int: int,
        bool: lambda text: text == "True",
        float: _number,
        Outcome: lambda text: cast(Outcome, text),
    }
    values: dict[str, Any] = {}
    for name, kind in get_type_hints(Standing).items():
        if kind is Estimate:
            values[name] = Estimate(*(_number(line[f"{name}{end}"]) for end in ENDS))
        else:
            values[name] = read[kind](line[name])
    return Standing(**values)


def _number(text: str) -> float:
    return float(text) if text else math.nan


def write_sites(path: Path, result: Result) -> None:
    """Write ``comparison_sites.csv``: every entrant at every site, the numbers of the heat maps."""
    comparison = result.comparison
    lines = [
        {
            "entrant": row.entrant,
            "site": site,
            "vendor": comparison.vendors.get(site, ""),
            "role": "unseen" if site in comparison.unseen else "ranking",
            "subjects": found.subjects,
            **_estimate("dice", found.dice),
            **_estimate("difference", found.difference),
            "hd95_mm": found.hd95_mm,
        }
        for row in result.standings
        for site, found in result.at_site[row.entrant].items()
    ]
    _write(path, SITE_COLUMNS, lines)


def _write(path: Path, columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
    rows = ([_known(line[column]) for column in columns] for line in lines)
    write_atomic(path, csv_text(columns, rows))


def _known(value: Any) -> Any:
    """Empty for nan."""
    return "" if isinstance(value, float) and math.isnan(value) else value


# For papers


def columns(standings: Sequence[Standing]) -> dict[str, Callable[[Standing], str]]:
    """The columns of the printed tables, by heading; those without any value are left out."""
    shown: dict[str, Callable[[Standing], str]] = {
        "mean": lambda row: with_interval(row.mean),
        "worst site": lambda row: f"{with_interval(row.worst)} {row.worst_site}".rstrip(),
        "gap": lambda row: with_interval(row.gap),
        "unseen": lambda row: with_interval(row.unseen),
        "mean rank": lambda row: known(row.mean_rank, "{:.2f}".format),
        "HD95 (mm)": lambda row: known(row.hd95_mm, "{:.2f}".format),
        "bytes": lambda row: known(row.bytes, format_bytes),
        "seconds": lambda row: known(row.seconds, "{:.1f}".format),
        "difference": lambda row: with_interval(row.difference, signed=True),
        "p, subjects": lambda row: known(row.p_subjects_holm, p_value),
        "p, seeds": lambda row: known(row.p_seeds_holm, p_value),
    }
    return {
        name: text
        for name, text in shown.items()
        if any(text(row) != UNKNOWN_TEXT for row in standings)
    }


def known(value: float, form: Callable[[float], str]) -> str:
    """The value as ``form`` prints it, a dash for nan."""
    return UNKNOWN_TEXT if math.isnan(value) else form(value)


def with_interval(found: Estimate, signed: bool = False) -> str:
    """``0.812 [0.790, 0.834]``."""
    form = gain if signed else "{:.3f}".format
    text = known(found.value, form)
    return f"{text} [{form(found.low)}, {form(found.high)}]" if found.has_interval else text


def gain(value: float) -> str:
    """A difference with its sign, which a zero has none of."""
    return f"{value:+.3f}" if round(value, 3) else "0.000"


def deciding_p(row: Standing) -> float:
    """The larger of the two p-values, as both must be small; nan where nothing was tested."""
    if math.isnan(row.p_subjects_holm) or math.isnan(row.p_seeds_holm):
        return row.p_subjects_holm
    return max(row.p_subjects_holm, row.p_seeds_holm)


def p_value(value: float) -> str:
    """Three decimals, or ``<0.001``."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def outcome(row: Standing) -> str:
    """What the table says of the difference to the baseline."""
    if row.outcome in ("better", "worse") and math.isnan(row.p_seeds_holm):
        return f"{row.outcome} (one seed)"
    return row.outcome


def write_markdown(path: Path, standings: Sequence[Standing], baseline: str) -> None:
    """Write ``comparison.md``: the result in words and as a table."""
    shown = columns(standings)
    heads = ["", "entrant", *shown, f"against {baseline}"]
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
        for row in standings
    ]
    said = _markdown(" ".join(sentences(standings)))
    write_atomic(path, f"{said}\n\n" + "".join(lines) + f"\n{_caption(baseline)}\n")


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_markdown(cell) for cell in cells) + " |\n"


def _markdown(text: str) -> str:
    """``text`` on one line, in which neither a column nor an HTML element begins."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", short(text, len(text)).replace("|", "\\|"))


def write_latex(path: Path, standings: Sequence[Standing], baseline: str) -> None:
    """Write ``comparison.tex``: a ``table*`` for the package ``booktabs``, best values bold."""
    shown = columns(standings)
    best = _best(standings)
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
        for row in standings
    ]
    heads = " & ".join(_latex(name) for name in ["entrant", *shown, f"against {baseline}"])
    body = "\n".join(lines)
    write_atomic(
        path,
        f"% needs \\usepackage{{booktabs}}\n\\begin{{table*}}\n\\centering\\footnotesize\n"
        f"\\caption{{{_latex(_caption(baseline))}}}\n"
        f"\\begin{{tabular}}{{l{'r' * len(shown)}l}}\n\\toprule\n{heads} \\\\\n\\midrule\n"
        f"{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table*}}\n",
    )


def _best(standings: Sequence[Standing]) -> dict[str, Standing]:
    """Which row is printed bold, by column."""
    ranked = [row for row in standings if row.place]
    if len(ranked) < 2:
        return {}
    unseen = [row for row in ranked if row.unseen.known]
    best = {
        "mean": ranked[0],
        "worst site": max(ranked, key=lambda row: row.worst.value),
        "gap": min(ranked, key=lambda row: row.gap.value),
        "mean rank": min(ranked, key=lambda row: row.mean_rank),
        "HD95 (mm)": min(ranked, key=lambda row: row.hd95_mm),
    }
    return best | ({"unseen": max(unseen, key=lambda row: row.unseen.value)} if unseen else {})


def _seeds(row: Standing) -> str:
    """How many of its cells the row is over, where some are missing."""
    return "" if row.seeds == row.cells else f" ({row.seeds} of {row.cells} seeds)"


def _caption(baseline: str) -> str:
    return (
        "Dice on the test split with 95 % bootstrap intervals, subjects resampled within sites; "
        f"differences to {baseline}, with Holm-corrected p-values: a signed-rank test over "
        "subjects, and a t-test over seeds where there are several."
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
