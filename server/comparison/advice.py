"""Whether a comparison bears the advice out: do entrants of the advised family beat FedAvg?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedshift import UserError
from fedshift.protocol.measures import Measure
from fedshift.server.advice.families import families_of
from fedshift.server.advice.rules import VERBS, Advice, Evidence, advise
from fedshift.server.comparison.cells import Cell
from fedshift.server.comparison.ranking import Standing, rank
from fedshift.server.comparison.read import Comparison, Entrant, read
from fedshift.server.comparison.words import gain, gain_interval
from fedshift.server.report.run import Run
from fedshift.strategies.base import Family

Result = Literal["beats", "ties", "loses", "too few"]
_RESULTS: Mapping[str, Result] = {"better": "beats", "not shown": "ties", "worse": "loses"}
_SAID = {
    "beats": "beats",
    "ties": "ties with",
    "loses": "loses to",
    "too few": "has too few subjects to be told from",
}


@dataclass(frozen=True)
class Against:
    """An entrant that does something about a shift or a fault, against plain FedAvg in terms of the
    headline ``measure``."""

    families: frozenset[Family]
    standing: Standing
    measure: Measure

    @property
    def result(self) -> Result:
        """How it ended; a tie is a difference that is not shown."""
        return _RESULTS.get(self.standing.outcome, "too few")

    @property
    def sentence(self) -> str:
        """It and its mean gain over the sites, with the 95 % interval."""
        found, measure = self.standing.difference, self.measure
        unit = f" {measure.unit}" if measure.unit else ""
        said = f"gain {gain(found.value, measure)}{unit} in {measure.title}"
        if found.has_interval:
            said += f", 95 % interval {gain_interval(found, measure)}"
        return f"{self.standing.label} {_SAID[self.result]} FedAvg ({said})"


@dataclass(frozen=True)
class Checked:
    """The advice on a comparison, and what the comparison says of it.

    ``measure`` is the headline, ``by_seed`` the advice of each of FedAvg's runs, ``advice`` the
    most frequent of them (of equally frequent ones that of the first seed). ``against`` are the
    entrants of any family, the largest gain first, over ``sites``: all that train but those that
    look faulty.
    """

    measure: Measure
    advice: Advice
    by_seed: Mapping[str, Advice]
    against: tuple[Against, ...]
    sites: tuple[str, ...]

    @property
    def advised(self) -> list[Against]:
        """The entrants of the family that is to be tried first."""
        return [item for item in self.against if self.advice.first in item.families]

    @property
    def verdict(self) -> str:
        """In a sentence or two, whether the advice holds."""
        if self.advice.first is None:
            return "There is no advice to check."
        winners = [item for item in self.against if item.result == "beats"]
        if self.advice.first == "nothing":
            if winners:
                return f"The advice does not hold: {winners[0].sentence}."
            if not self.against:
                return "The comparison has no entrant to check it against."
            return "The advice holds: no entrant is shown to beat FedAvg."
        if not self.advised:
            return f"The comparison has no entrant that would {VERBS[self.advice.first]}."
        # Of those that beat FedAvg the one that gains most, or else of all.
        best = next((item for item in self.advised if item in winners), self.advised[0])
        holds = {
            "beats": "The advice holds",
            "ties": "The advice is not borne out",
            "loses": "The advice does not hold",
            "too few": "The advice cannot be checked",
        }[best.result]
        others = [item for item in winners if self.advice.first not in item.families]
        more = f" Of other families, {others[0].sentence}." if others else ""
        return f"{holds}: {best.sentence}.{more}"


def check(cells: Sequence[Cell]) -> Checked:
    """Advise on a comparison's plain FedAvg runs and set the advice against its entrants.

    A run of the same seed with ``strategy=local`` and else the same settings, where there is one,
    adds what each site reaches alone. Raises :class:`fedshift.UserError` when the comparison has
    no finished run of plain FedAvg, or leaves sites out in turn.
    """
    # Whatever the others were tested against so far, here it is plain FedAvg.
    comparison = read(cells, baseline=cells[0].entrant)
    if comparison.in_turn:
        raise UserError(
            "a comparison that leaves something out in turn measures no shift between all sites; "
            "advise on one with protocol=together"
        )
    finished = [entrant for entrant in comparison.entrants if entrant.runs]
    plain = next((item for item in finished if _families(item) == {"nothing"}), None)
    if plain is None:
        raise UserError(
            "the comparison has no finished run of FedAvg alone, on which advice rests; add "
            "strategy=fedavg with a method that does not adapt (method=supervised) to the grid"
        )
    alone = {**plain.settings, "strategy": "local"}
    local = next((item for item in finished if dict(item.settings) == alone), None)
    by_seed = {
        seed: advise(_evidence(run, local.runs.get(seed) if local else None))
        for seed, run in plain.runs.items()
    }
    usual = Counter(advice.families for advice in by_seed.values()).most_common(1)[0][0]
    advice = next(found for found in by_seed.values() if found.families == usual)
    sites = tuple(site for site in comparison.trained if site not in advice.suspects)
    against = _against(comparison, plain, finished, sites)
    return Checked(comparison.headline, advice, by_seed, against, sites)


def _families(entrant: Entrant) -> frozenset[Family]:
    run = next(iter(entrant.runs.values()))
    return families_of(run.config, run.method is not None and run.method.adapts)


def _evidence(run: Run, local: Run | None) -> Evidence:
    """What the run measured, with the single-site models of ``local``."""
    rows = [row for row in (local.cross_site if local else []) if row["model"] == "local"]
    return replace(run.evidence, cross_site=[*run.cross_site, *rows])


def _against(
    comparison: Comparison,
    plain: Entrant,
    finished: Sequence[Entrant],
    sites: tuple[str, ...],
) -> tuple[Against, ...]:
    """Every entrant of a family against ``plain``, over ``sites``."""
    acting = {
        entrant.name: families
        for entrant in finished
        if (families := _families(entrant)) and entrant is not plain
    }
    chosen = tuple(item for item in finished if item is plain or item.name in acting)
    ranked = rank(replace(comparison, entrants=chosen, baseline=plain.name, trained=sites)).ranked
    found = [
        Against(acting[row.entrant], row, comparison.headline)
        for row in ranked
        if row.entrant in acting
    ]
    return tuple(sorted(found, key=lambda item: -item.standing.difference.value))
