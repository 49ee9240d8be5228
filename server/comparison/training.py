"""How the entrants' runs went, from ``rounds.jsonl``: curves, simulated time, bytes and seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedshift.server.comparison.read import Comparison, Entrant
from fedshift.server.report.run import Run

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Curve:
    """The headline on validation after each round, (rounds,) each: the mean over the sites, seeds
    and folds.

    ``hours`` is the simulated time at which the round was over, nan throughout without a clock.
    Rounds without validation are left out, as are those that not every run reached.
    """

    rounds: np.ndarray
    values: np.ndarray
    hours: np.ndarray


def trainings(entrant: Entrant) -> list[Run]:
    """The runs with rounds: one a seed, or one a seed and fold."""
    return [
        part
        for _, run in sorted(entrant.runs.items())
        for part in (run.folds if run.in_turn else (run,))
        if part.rounds
    ]


def curve(runs: Sequence[Run]) -> Curve:
    """Average the curves of the trainings; empty when nothing was validated."""
    found = [_one(run) for run in runs]
    common = sorted(set.intersection(*(set(rounds) for rounds, _, _ in found))) if found else []
    at = [[list(rounds).index(number) for number in common] for rounds, _, _ in found]
    if not common:
        return Curve(np.zeros(0), np.zeros(0), np.zeros(0))
    return Curve(
        np.array(common),
        np.mean([values[index] for (_, values, _), index in zip(found, at, strict=True)], axis=0),
        np.mean([hours[index] for (_, _, hours), index in zip(found, at, strict=True)], axis=0),
    )


def _one(run: Run) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The validated rounds of one training, their mean over sites, and their hours."""
    sites = run.validation[run.main_arm]
    values = np.stack(list(sites.values())) if sites else np.full((1, len(run.rounds)), np.nan)
    # A site that failed in a round would move the mean by its absence alone.
    held = ~np.isnan(values).any(axis=0)
    clock = np.array([line.get("clock_s", math.nan) for line in run.rounds], dtype=np.float64)
    numbers = [line["round"] for line, kept in zip(run.rounds, held, strict=True) if kept]
    return numbers, values[:, held].mean(axis=0), clock[held] / SECONDS_PER_HOUR


def validation_at(runs: Sequence[Run], hours: float) -> float:
    """The headline on validation of the last round that was over by then, the mean over trainings;
    nan when one of them had finished none."""
    last = []
    for run in runs:
        _, values, ends = _one(run)
        done = np.flatnonzero(ends <= hours)
        last.append(float(values[done[-1]]) if len(done) else math.nan)
    return float(np.mean(last)) if last else math.nan


def common_hours(comparison: Comparison) -> float:
    """The simulated time that every finished training reached; nan when one of them has no clock.

    It is the end of the shortest of them.
    """
    ends = [
        run.rounds[-1].get("clock_s", math.nan)
        for entrant in comparison.entrants
        for run in trainings(entrant)
    ]
    return min(ends) / SECONDS_PER_HOUR if ends and not any(map(math.isnan, ends)) else math.nan


def spent(entrant: Entrant, key: str) -> float:
    """The sum over rounds (and folds) of ``bytes_down``, ``bytes_up`` or ``seconds``, the mean over
    seeds; nan without a round."""
    totals = [
        math.fsum(line[key] for line in _lines(run))
        for run in entrant.runs.values()
        if any(True for _ in _lines(run))
    ]
    return math.fsum(totals) / len(totals) if totals else math.nan


def _lines(run: Run) -> Iterator[Mapping[str, float]]:
    for part in run.folds if run.in_turn else (run,):
        yield from part.rounds
