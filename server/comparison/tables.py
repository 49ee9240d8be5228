"""``comparison.csv`` and ``comparison_sites.csv``: a comparison's numbers for other programs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedshift.protocol.storage import write_atomic
from fedshift.protocol.tables import csv_text
from fedshift.server.comparison.ranking import Result, Standing
from fedshift.server.comparison.read import Comparison
from fedshift.server.comparison.statistics import Estimate


def write_standings(path: Path, result: Result) -> None:
    """Write ``comparison.csv``: a row an entrant in the table's order, the fields of ``Standing``
    as columns (an estimate fills three); what is not known is empty. The second measure's column
    has its name, or is not there, and ``at_hours`` follows the headline's."""
    _write(path, [_standing(row, result.comparison) for row in result.standings])


def _standing(row: Standing, comparison: Comparison) -> dict[str, Any]:
    names = {"at_hours": f"{comparison.headline.name}_at_hours"}
    if comparison.second is not None:
        names["second"] = comparison.second.name
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(row):
        value = getattr(row, item.name)
        if isinstance(value, Estimate):
            flat |= _estimate(item.name, value)
        elif item.name != "second" or comparison.second is not None:
            flat[names.get(item.name, item.name)] = value
    return flat


def _estimate(name: str, found: Estimate) -> dict[str, float]:
    """The value, and its 95 % interval."""
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def write_sites(path: Path, result: Result) -> None:
    """Write ``comparison_sites.csv``: every entrant at every site, the numbers of the heat maps;
    ``role`` is ``ranking`` or ``unseen``."""
    comparison = result.comparison
    lines = [
        {
            "entrant": row.entrant,
            "site": site,
            "vendor": comparison.vendors.get(site, ""),
            "role": "unseen" if site in comparison.unseen else "ranking",
            "subjects": found.subjects,
            **_estimate(comparison.headline.name, found.headline),
            **_estimate("difference", found.difference),
            **({comparison.second.name: found.second} if comparison.second else {}),
        }
        for row in result.standings
        for site, found in result.at_site[row.entrant].items()
    ]
    _write(path, lines)


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    rows = ([_known(value) for value in line.values()] for line in lines)
    write_atomic(path, csv_text(list(lines[0]), rows))


def _known(value: Any) -> Any:
    """Empty for nan."""
    return "" if isinstance(value, float) and math.isnan(value) else value
