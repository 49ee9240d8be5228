"""The cells of a comparison, read as entrants: what each gives every subject of every site."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from fedshift import UserError
from fedshift.protocol.measures import Measure
from fedshift.server.comparison.cells import Cell
from fedshift.server.report.run import Model, Row, Run, read_run
from fedshift.server.tables.files import read_cases

HEADLINE = Measure("dice", "Dice", "higher", low=0, high=1)
METRICS = ("dice", "hd95_mm")
"""What is compared: the columns of a score."""

Scores = dict[str, dict[str, dict[str, np.ndarray]]]
"""Site -> subject -> seed -> score (len(METRICS),), a mean over the structures."""

PLAIN_AXES = ("strategy", "method")
"""Axes whose values say by themselves what they are."""


@dataclass(frozen=True)
class Entrant:
    """What is compared: the cells that differ in the seed alone, in the grid's order.

    ``runs`` are the finished ones by seed, and ``scores`` what they reach on the test split.
    """

    name: str
    settings: Mapping[str, str]
    cells: tuple[Cell, ...]
    scores: Scores
    runs: Mapping[str, Run] = field(default_factory=dict)

    @cached_property
    def label(self) -> str:
        """Its name in figures: ``fedprox · mu=0.1`` for ``strategy=fedprox strategy.mu=0.1``."""
        parts = [
            value if key in PLAIN_AXES else f"{key.rpartition('.')[2]}={value}"
            for key, value in self.settings.items()
        ]
        return " · ".join(parts) or "the only entrant"

    @property
    def pooled(self) -> bool:
        """Whether it trains on all data in one place: an upper bound, which does not compete."""
        return any(run.main_arm == "pooled" for run in self.runs.values())

    def subjects(self, site: str, seeds: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Each subject's score at ``site``, (len(METRICS),), the mean over its seeds (or over those
        of ``seeds`` that it was tested with), by name. A subject is one, however many seeds."""
        kept = None if seeds is None else set(seeds)
        found = {}
        for subject, by_seed in sorted(self.scores.get(site, {}).items()):
            values = [by_seed[seed] for seed in sorted(by_seed) if kept is None or seed in kept]
            if values:
                found[subject] = np.mean(values, axis=0)
        return found


@dataclass(frozen=True)
class Comparison:
    """All entrants, which of them the others are tested against, and the sites.

    ``trained`` are the sites whose mean ranks the entrants: those that train or, where each site
    is left out in turn, all of them. ``unseen`` take no part. ``baseline`` is an entrant's name.
    """

    entrants: tuple[Entrant, ...]
    baseline: str
    trained: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    vendors: Mapping[str, str] = field(default_factory=dict)
    in_turn: Literal["", "site", "labels", "vendor"] = ""

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site, those that train first."""
        return (*self.trained, *self.unseen)

    @cached_property
    def first_run(self) -> Run | None:
        """The first finished run, for what all of them share."""
        runs = (run for entrant in self.entrants for run in entrant.runs.values())
        return next(runs, None)

    @property
    def cells(self) -> list[Cell]:
        """Every cell of the grid."""
        return [cell for entrant in self.entrants for cell in entrant.cells]


def read(cells: Sequence[Cell], baseline: str) -> Comparison:
    """Read every finished cell. One that cannot be read counts as failed, with the reason.

    Raises :class:`fedshift.UserError` when ``baseline`` is no entrant's name.
    """
    grouped: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        grouped[cell.entrant].append(cell)
    if baseline not in grouped:
        raise UserError(
            f"baseline={baseline} names no entrant of the comparison; choose one of "
            + ", ".join(f"'{name}'" for name in grouped)
        )
    entrants = tuple(_entrant(name, group) for name, group in grouped.items())
    runs = [run for entrant in entrants for run in entrant.runs.values()]
    unseen = {site for run in runs for site in run.unseen}
    sites = {site for run in runs for site in run.vendors}
    return Comparison(
        entrants=entrants,
        baseline=baseline,
        trained=tuple(sorted(sites - unseen)),
        unseen=tuple(sorted(sites & unseen)),
        vendors={site: vendor for run in runs for site, vendor in run.vendors.items()},
        in_turn=runs[0].in_turn if runs else "",
    )


def _entrant(name: str, cells: Sequence[Cell]) -> Entrant:
    runs: dict[str, Run] = {}
    scores: Scores = defaultdict(lambda: defaultdict(dict))
    checked = []
    for cell in cells:
        if cell.status == "done":
            try:
                run = read_run(cell.folder)
                assert run.task is not None, "a finished run says what it measures"
                found = run_scores(run, read_cases(cell.folder / "cases.csv", run.task))
            except UserError as error:
                checked.append(replace(cell, status="failed", error=str(error)))
                continue
            runs[cell.seed] = run
            for (site, subject), score in found.items():
                scores[site][subject][cell.seed] = score
        checked.append(cell)
    settings = {key: value for key, value in cells[0].settings.items() if key != "seed"}
    return Entrant(name, settings, tuple(checked), scores, runs)


def run_scores(run: Run, case_rows: Sequence[Row]) -> dict[tuple[str, str], np.ndarray]:
    """What the run's strategy gives each (site, subject) of the test split, (len(METRICS),).

    A site that trains is given its own model where the strategy keeps or trains one for it
    (``personal``, ``local``), else the shared one. A site that the models never saw, or that has no
    labels to train its own with, is given the shared one or, where there is none, the mean score of
    the sites' models. A subject's score is the mean over its cases, then over the structures.
    """
    tested: dict[str, dict[Model, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in case_rows:
        if row["split"] == "test":
            tested[row["site"]][row["model"], row["trained_on"]].append(row)
    scores = {}
    for site, by_model in tested.items():
        models = _given(run, site, set(by_model))
        found = [_subject_means(by_model[model]) for model in models]
        for subject in sorted(set().union(*found)):
            # A subject that one of the models was not scored on would be scored by fewer of them.
            if all(subject in means for means in found):
                scores[site, subject] = np.mean([means[subject] for means in found], axis=0)
    return scores


def _given(run: Run, site: str, scored: set[Model]) -> list[Model]:
    """The models whose mean score the run stands for at ``site``: mostly one, none if it is
    missing."""
    shared, each = {
        "local": (("local", "all"), "local"),
        "pooled": (("pooled", "all"), "personal"),
        "federated": (("global", "all"), "personal"),
    }[run.main_arm]
    if (each, site) in scored:
        return [(each, site)]
    singles = sorted(model for model in scored if model[0] == each and model[1] != "all")
    trains = not run.in_turn and site not in run.unseen | run.unlabelled
    if singles and trains:
        return []
    return [shared] if shared in scored else singles


def _subject_means(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    values: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: (row["subject"], row["part"], row["case"])):
        values[row["subject"]][row["part"]].append([row[metric] for metric in METRICS])
    return {
        subject: np.mean([np.mean(cases, axis=0) for cases in structures.values()], axis=0)
        for subject, structures in values.items()
    }
