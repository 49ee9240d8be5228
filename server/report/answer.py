"""The run's result in words and in the few numbers that carry it, all from ``overview``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedshift.protocol.measures import Measure
from fedshift.protocol.words import count, some
from fedshift.server.report.run import Run
from fedshift.server.report.words import EACH_OWN
from fedshift.server.tables.overview import Overview, overview, site_values

UPPER_BOUND = "all data in one place; simulation only"


@dataclass(frozen=True)
class Answer:
    """The mean headline over sites, nan where the run has no such model or site.

    ``in_turn`` says what was left out of each site in turn, if anything: all values are then of
    models that never saw the site, its vendor, or its labels, and ``away`` those of the other
    sites' own models.

    ``home`` and ``away`` are means over the single-site models: where each was trained, and at the
    other training sites. The ``unseen_*`` values are means over the sites that train nothing.
    Where parts count at some sites alone, ``away`` and ``home`` would be of unlike parts: ``away``
    is then nan and ``lost`` the mean of what single-site models lose from home to another training
    site; nan elsewhere.
    ``parts_told`` says over which parts the means are where that differs (``Run.parts_told``).
    """

    headline: Measure
    in_turn: Literal["", "site", "vendor", "labels"]
    sites: int
    federated: float
    worst_site: str
    worst: float
    home: float
    away: float
    lost: float
    personal: float
    pooled: float
    unseen: tuple[str, ...]
    unseen_federated: float
    unseen_single: float
    unseen_pooled: float
    parts_told: tuple[str, ...]

    def sentences(self) -> list[str]:
        """Return the result in plain sentences, without what was not measured."""
        said = self._sentences_in_turn() if self.in_turn else self._sentences_together()
        return [*said, *self.parts_told]

    def _sentences_together(self) -> list[str]:
        said = []
        reach, cell = self.headline.said, self.headline.cell
        if _known(self.federated):
            worst = f" (worst: {self.worst_site}, {reach(self.worst)})" if self.sites > 1 else ""
            said.append(
                f"The federated model reaches {reach(self.federated)} mean {self.headline.title} "
                f"over {count(self.sites, 'training site')}{worst}."
            )
        if _known(self.home) and _known(self.away):
            said.append(
                f"Models trained at a single site reach {reach(self.home)} at home "
                f"and {reach(self.away)} at the other sites."
            )
        elif _known(self.home) and _known(self.lost):
            said.append(
                f"Models trained at a single site reach {reach(self.home)} at home; at another "
                f"training site they are {reach(abs(self.lost))} "
                f"{'worse' if self.lost > 0 else 'better'} in the mean over what is scored at both."
            )
        elif _known(self.home):
            said.append(f"The single site's own model reaches {reach(self.home)} there.")
        if _known(self.personal):
            said.append(f"Personalised models reach {reach(self.personal)} at home.")
        if _known(self.pooled):
            said.append(
                f"Pooled, the upper bound ({UPPER_BOUND}), reaches {reach(self.pooled)}"
                f"{self._beaten()}."
            )
        parts = [
            f"{name} {cell(value)}"
            for name, value in (
                ("federated", self.unseen_federated),
                ("single-site models", self.unseen_single),
                ("pooled", self.unseen_pooled),
            )
            if _known(value)
        ]
        if parts:
            many = len(self.unseen) > 3
            which = f"{len(self.unseen)} unseen sites" if many else f"unseen {some(self.unseen)}"
            said.append(f"At {which}: {', '.join(parts)}.")
        return said

    def _beaten(self) -> str:
        """That the federated model is better than the upper bound, where it is."""
        if not self.headline.sign * (self.federated - self.pooled) > 0:
            return ""
        less = "less" if self.headline.better == "higher" else "more"
        return f", in this run {less} than federated"

    def _sentences_in_turn(self) -> list[str]:
        said = []
        reach = self.headline.said
        never, each, without = "that it never saw", "left out", "the site"
        if self.in_turn == "vendor":
            never, each = "whose vendor it never saw", "left out with its vendor"
            without = "its vendor"
        elif self.in_turn == "labels":
            never, each, without = "whose labels it never saw", "without labels", "its labels"
        if _known(self.federated):
            said.append(
                f"At a site {never}, the federated model reaches {reach(self.federated)} "
                f"mean {self.headline.title} ({count(self.sites, 'site')}, each {each} in turn; "
                f"worst: {self.worst_site}, {reach(self.worst)})."
            )
        if _known(self.away):
            said.append(f"Models trained at a single other site reach {reach(self.away)} there.")
        if _known(self.pooled):
            said.append(
                f"Pooled without {without}, the upper bound ({UPPER_BOUND}), "
                f"reaches {reach(self.pooled)}."
            )
        return said


def answer(run: Run) -> Answer:
    """Gather what ``run`` reaches in its headline, which some model must have been scored by."""
    found = overview(run.scores, run.headline, run.unseen)
    single = [item for item in found if item.model == "local"]
    federated = next((item for item in found if item.model == "global"), None)
    pooled = next((item for item in found if item.model == "pooled"), None)
    scored = {row["site"] for row in run.cross_site}
    told = run.parts_told(run.headline)
    drops = [drop for pair, drop in run.drops.items() if not run.unseen.intersection(pair)]
    compared = site_values(run.scores, run.headline)
    by_single = [values for (model, _), values in compared.items() if model == "local"]
    # A mean over fewer unseen sites than the shared model's would not compare.
    everywhere = all(any(site in values for values in by_single) for site in scored & run.unseen)
    return Answer(
        headline=run.headline,
        in_turn=run.in_turn,
        sites=len(scored - run.unseen),
        federated=federated.macro_mean if federated else np.nan,
        worst_site=federated.worst_site if federated else "",
        worst=federated.worst if federated else np.nan,
        home=_mean([item.home for item in single]),
        away=np.nan if told and not run.in_turn else _mean([item.away for item in single]),
        lost=_mean(drops) if told else np.nan,
        personal=_mean([_own(item) for item in found if item.model == "personal"]),
        pooled=pooled.macro_mean if pooled else np.nan,
        unseen=tuple(sorted(scored & run.unseen)),
        unseen_federated=federated.unseen if federated else np.nan,
        unseen_single=_mean([item.unseen for item in single]) if everywhere else np.nan,
        unseen_pooled=pooled.unseen if pooled else np.nan,
        parts_told=tuple(told),
    )


def _own(item: Overview) -> float:
    return item.macro_mean if (item.model, item.trained_on) == EACH_OWN else item.home


def _known(value: float) -> bool:
    return not np.isnan(value)


def _mean(values: list[float]) -> float:
    known = [value for value in values if _known(value)]
    return float(np.mean(known)) if known else np.nan
