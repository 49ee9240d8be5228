"""The cells of a comparison, read as entrants: what each gives every subject of every site."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from fedshift import UserError
from fedshift.protocol.measures import Measure, TaskCard
from fedshift.server.comparison.cells import Cell
from fedshift.server.report.run import Row, Run, read_run
from fedshift.server.report.words import Model
from fedshift.server.tables.files import read_cases
from fedshift.server.tables.overview import site_values

HEADLINE, SECOND = 0, 1
"""The columns of a score."""

Scores = dict[str, dict[str, dict[str, np.ndarray]]]
"""Site -> subject -> seed -> score (len(measures),), a mean over the parts. A measure of a whole
split is the same for all its subjects; where the headline is one, a site counts as one subject
without a name."""

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
        """Each subject's score at ``site``, (len(measures),), the mean over its seeds (or over
        those of ``seeds`` that it was tested with), by name. A subject is one, however many
        seeds."""
        kept = None if seeds is None else set(seeds)
        found = {}
        for subject, by_seed in sorted(self.scores.get(site, {}).items()):
            values = [by_seed[seed] for seed in sorted(by_seed) if kept is None or seed in kept]
            if values:
                found[subject] = np.mean(values, axis=0)
        return found


@dataclass(frozen=True)
class Comparison:
    """All entrants, which of them the others are tested against, what they learn, and the sites.

    ``trained`` are the sites whose mean ranks the entrants: those that train or, where each site
    is left out in turn, all of them. ``unseen`` take no part. ``baseline`` is an entrant's name.
    """

    entrants: tuple[Entrant, ...]
    baseline: str
    task: TaskCard
    trained: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    vendors: Mapping[str, str] = field(default_factory=dict)
    in_turn: Literal["", "site", "labels", "vendor"] = ""

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site, those that train first."""
        return (*self.trained, *self.unseen)

    @property
    def headline(self) -> Measure:
        """What ranks the entrants."""
        return self.task.headline

    @property
    def second(self) -> Measure | None:
        """What is shown beside it, if anything."""
        return next(iter(compared(self.task)[SECOND:]), None)

    @cached_property
    def first_run(self) -> Run | None:
        """The first finished run, for what all of them share; None of entrants without folders."""
        runs = (run for entrant in self.entrants for run in entrant.runs.values())
        return next(runs, None)

    @property
    def axes(self) -> dict[str, list[str]]:
        """Every axis of the grid but the seed, with its values."""
        found: dict[str, dict[str, None]] = {}
        for entrant in self.entrants:
            for key, value in entrant.settings.items():
                found.setdefault(key, {})[value] = None
        return {key: list(values) for key, values in found.items()}

    @property
    def cells(self) -> list[Cell]:
        """Every cell of the grid."""
        return [cell for entrant in self.entrants for cell in entrant.cells]


def read(cells: Sequence[Cell], baseline: str) -> Comparison:
    """Read every finished cell. One that cannot be read counts as failed, with the reason.

    Raises :class:`fedshift.UserError` when ``baseline`` is no entrant's name, no cell can be read,
    or two learn different tasks.
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
    if not runs:
        errors = [cell.error for entrant in entrants for cell in entrant.cells if cell.error]
        why = f": {errors[0]}" if errors else "; run the comparison first"
        raise UserError(f"no cell of the comparison is finished{why}")
    unseen = {site for run in runs for site in run.unseen}
    sites = {site for run in runs for site in run.vendors}
    return Comparison(
        entrants=entrants,
        baseline=baseline,
        task=_shared_task(runs),
        trained=tuple(sorted(sites - unseen)),
        unseen=tuple(sorted(sites & unseen)),
        vendors={site: vendor for run in runs for site, vendor in run.vendors.items()},
        in_turn=runs[0].in_turn,
    )


def _shared_task(runs: Sequence[Run]) -> TaskCard:
    (first, task), *others = ((run, run.task) for run in runs if run.task is not None)
    for run, other in others:
        if (other.name, other.measures) != (task.name, task.measures):
            raise UserError(
                f"{first.folder} measures {task.title} and {run.folder} {other.title}, otherwise "
                "or of another version: make a comparison of each"
            )
    return task


def compared(task: TaskCard) -> tuple[Measure, ...]:
    """What is compared: the headline and, where every case or split has it, the second measure."""
    second = task.second
    told = second is not None and (second.whole or (second.listed and not second.sparse))
    return task.measures[: 1 + told]


def _entrant(name: str, cells: Sequence[Cell]) -> Entrant:
    runs: dict[str, Run] = {}
    scores: Scores = defaultdict(lambda: defaultdict(dict))
    checked = []
    for cell in cells:
        if cell.status == "done":
            try:
                run = read_run(cell.folder)
                if run.task is None:
                    raise UserError(f"{cell.folder} was not scored; run the comparison again")
                rows = read_cases(cell.folder / "cases.csv", run.task)
                found = run_scores(run, run.task, rows)
                if not found:
                    raise UserError(f"{cell.folder} has no scored case in its test split")
            except UserError as error:
                checked.append(replace(cell, status="failed", error=str(error)))
                continue
            runs[cell.seed] = run
            for (site, subject), score in found.items():
                scores[site][subject][cell.seed] = score
        checked.append(cell)
    settings = {key: value for key, value in cells[0].settings.items() if key != "seed"}
    return Entrant(name, settings, tuple(checked), scores, runs)


def run_scores(
    run: Run, task: TaskCard, case_rows: Sequence[Row]
) -> dict[tuple[str, str], np.ndarray]:
    """What the run's strategy gives each (site, subject) of the test split, (len(measures),).

    A site that trains is given its own model where the strategy keeps or trains one for it
    (``personal``, ``local``), else the shared one. A site that the models never saw, or that has no
    labels to train its own with, is given the shared one or, where there is none, the mean score of
    the sites' models. A subject's score is the mean over its cases, then over the parts.
    """
    measures = compared(task)
    rows: dict[str, dict[Model, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in case_rows:
        if row["split"] == "test":
            rows[row["site"]][row["model"], row["trained_on"]].append(row)
    wholes: dict[str, dict[Model, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for measure in measures:
        if measure.whole:
            for model, values in site_values(run.cross_site, measure).items():
                for site, value in values.items():
                    wholes[site][model][measure.name] = value
    scores = {}
    for site in rows.keys() | wholes.keys():
        models = _given(run, site, {*rows[site], *wholes[site]})
        found = [_scores(rows[site][model], measures, wholes[site][model]) for model in models]
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


def _scores(
    rows: Sequence[Row], measures: Sequence[Measure], wholes: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """A model's score for each subject of a site, from its ``rows`` there and its values on the
    ``wholes`` of the split."""
    values: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: (row["subject"], row["part"], row["case"])):
        score = [
            wholes.get(measure.name, math.nan) if measure.whole else row[measure.name]
            for measure in measures
        ]
        values[row["subject"]][row["part"]].append(score)
    found = {
        subject: np.mean([np.mean(cases, axis=0) for cases in parts.values()], axis=0)
        for subject, parts in values.items()
    }
    headline = measures[HEADLINE]
    if not headline.whole:
        return found
    if headline.name not in wholes:
        return {}
    beside = np.mean(list(found.values()), axis=0) if found else np.full(len(measures), np.nan)
    site = [
        wholes.get(measure.name, math.nan) if measure.whole else beside[column]
        for column, measure in enumerate(measures)
    ]
    return {"": np.array(site)}
