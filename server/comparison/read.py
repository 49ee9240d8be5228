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
from fedshift.server.report.words import Model, counting_words
from fedshift.server.tables.files import read_cases
from fedshift.server.tables.overview import mean

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
    ``parts`` are, by site, those that count in the headline and those that do not, as not all
    entrants were scored on them: of sites where there are such. Where none counts nothing is
    compared, and the site is of neither kind.
    """

    entrants: tuple[Entrant, ...]
    baseline: str
    task: TaskCard
    trained: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    vendors: Mapping[str, str] = field(default_factory=dict)
    in_turn: Literal["", "site", "labels", "vendor"] = ""
    parts: Mapping[str, tuple[set[str], set[str]]] = field(default_factory=dict)

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
    def parts_told(self) -> list[str]:
        """Over which parts the scores are where that differs between sites, in sentences."""
        return counting_words(self.parts, self.task.parts)

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
    read_in = [_entrant(name, group) for name, group in grouped.items()]
    runs = [run for entrant, _ in read_in for run in entrant.runs.values()]
    if not runs:
        errors = [cell.error for entrant, _ in read_in for cell in entrant.cells if cell.error]
        why = f": {errors[0]}" if errors else "; run the comparison first"
        raise UserError(f"no cell of the comparison is finished{why}")
    task = _shared_task(runs)
    entrants, parts = _scored(read_in, task)
    unseen = {site for run in runs for site in run.unseen}
    sites = {site for run in runs for site in run.vendors}
    sites -= {site for site, (count, _) in parts.items() if not count}
    return Comparison(
        entrants=entrants,
        baseline=baseline,
        task=task,
        trained=tuple(sorted(sites - unseen)),
        unseen=tuple(sorted(sites & unseen)),
        vendors={site: vendor for run in runs for site, vendor in run.vendors.items()},
        in_turn=runs[0].in_turn,
        parts=parts,
    )


def _scored(
    read_in: Sequence[tuple[Entrant, Mapping[str, Given]]], task: TaskCard
) -> tuple[tuple[Entrant, ...], dict[str, tuple[set[str], set[str]]]]:
    """The entrants with their scores, and ``Comparison.parts``. Parts count seed by seed: what is
    taught and tested depends on the split."""
    measures, headline = compared(task), task.headline
    scores: list[Scores] = [defaultdict(lambda: defaultdict(dict)) for _ in read_in]
    parts: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for seed in sorted({seed for _, gives in read_in for seed in gives}):
        runs = {place: gives[seed] for place, (_, gives) in enumerate(read_in) if seed in gives}
        count = counting(list(runs.values()), measures)
        for site, by_measure in count.items():
            models = [one for run in runs.values() for one in run.get(site, ())]
            every = set[str]().union(*(one.parts(headline) for one in models))
            parts[site][0].update(by_measure[headline.name])
            parts[site][1].update(every - by_measure[headline.name])
        for place, run in runs.items():
            for (site, subject), score in run_scores(run, measures, count).items():
                scores[place][site][subject][seed] = score
    entrants = tuple(
        replace(entrant, scores=found) for (entrant, _), found in zip(read_in, scores, strict=True)
    )
    return entrants, {site: found for site, found in sorted(parts.items()) if found[1]}


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


def _entrant(name: str, cells: Sequence[Cell]) -> tuple[Entrant, dict[str, Given]]:
    """An entrant without its scores, and what it gives by seed."""
    runs: dict[str, Run] = {}
    gives: dict[str, Given] = {}
    checked = []
    for cell in cells:
        if cell.status == "done":
            try:
                run = read_run(cell.folder)
                if run.task is None:
                    raise UserError(f"{cell.folder} was not scored; run the comparison again")
                rows = read_cases(cell.folder / "cases.csv", run.task)
                found = given(run, run.task, rows)
                if not found:
                    raise UserError(f"{cell.folder} has no scored case in its test split")
            except UserError as error:
                checked.append(replace(cell, status="failed", error=str(error)))
                continue
            runs[cell.seed], gives[cell.seed] = run, found
        checked.append(cell)
    settings = {key: value for key, value in cells[0].settings.items() if key != "seed"}
    return Entrant(name, settings, tuple(checked), {}, runs), gives


@dataclass(frozen=True)
class Reached:
    """What one model reaches at a site: its ``rows`` of ``cases.csv`` in the test split, and its
    values of whole splits, by measure and part."""

    rows: Sequence[Row]
    wholes: Mapping[str, Mapping[str, float]]

    def parts(self, measure: Measure) -> set[str]:
        """Those that it was scored on."""
        return set(self.wholes.get(measure.name, ())) if measure.whole else self._listed

    @cached_property
    def _listed(self) -> set[str]:
        return {row["part"] for row in self.rows}


Given = Mapping[str, Sequence[Reached]]
"""Site -> what the models reach whose mean score a run stands for there: mostly one."""

Counting = Mapping[str, Mapping[str, set[str]]]
"""Site -> measure -> the parts that count in it."""


def given(run: Run, task: TaskCard, case_rows: Sequence[Row]) -> Given:
    """What the run's strategy gives each site at which it was scored by the headline.

    A site that trains is given its own model where the strategy keeps or trains one for it
    (``personal``, ``local``), else the shared one. A site that the models never saw, or that has no
    labels to train its own with, is given the shared one or, where there is none, the mean score of
    the sites' models.
    """
    rows: dict[str, dict[Model, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in case_rows:
        if row["split"] == "test":
            rows[row["site"]][row["model"], row["trained_on"]].append(row)
    wholes: dict[str, dict[Model, dict[str, dict[str, float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    names = {measure.name for measure in compared(task) if measure.whole}
    for row in run.cross_site:
        if row["metric"] in names:
            model = row["model"], row["trained_on"]
            wholes[row["site"]][model][row["metric"]][row["part"]] = row["mean"]
    found = {}
    for site in sorted(rows.keys() | wholes.keys()):
        models = _given(run, site, {*rows[site], *wholes[site]})
        reached = [Reached(rows[site][model], wholes[site][model]) for model in models]
        if reached and all(one.parts(task.headline) for one in reached):
            found[site] = reached
    return found


def counting(runs: Sequence[Given], measures: Sequence[Measure]) -> Counting:
    """The parts on which all that is compared was scored. A run whose own models have none in
    common has no score at the site, and narrows nothing there."""
    found: dict[str, dict[str, set[str]]] = {}
    for site in sorted(set().union(*runs)):
        found[site] = {}
        for measure in measures:
            shared = [
                set.intersection(*(one.parts(measure) for one in run[site]))
                for run in runs
                if site in run
            ]
            shared = [parts for parts in shared if parts]
            found[site][measure.name] = set.intersection(*shared) if shared else set()
    return found


def run_scores(
    run: Given, measures: Sequence[Measure], count: Counting
) -> dict[tuple[str, str], np.ndarray]:
    """What the run reaches for each (site, subject) of the test split, (len(measures),). A
    subject's score is the mean over its cases, then over the parts that ``count``."""
    scores = {}
    for site, models in run.items():
        found = [_scores(one, measures, count[site]) for one in models]
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
    reached: Reached, measures: Sequence[Measure], count: Mapping[str, set[str]]
) -> dict[str, np.ndarray]:
    """A model's score for each subject of a site; none where it lacks a part that counts."""
    wholes = {
        measure.name: mean(reached.wholes[measure.name][part] for part in count[measure.name])
        for measure in measures
        if measure.whole and count[measure.name] <= reached.parts(measure) and count[measure.name]
    }
    listed = next((measure for measure in measures if not measure.whole), None)
    kept = count[listed.name] if listed else set()
    values: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    if listed and kept <= reached.parts(listed):
        for row in sorted(reached.rows, key=lambda row: (row["subject"], row["part"], row["case"])):
            if row["part"] in kept:
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
