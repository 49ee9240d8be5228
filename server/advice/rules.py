"""The rules: from the tables of a finished run to the family of methods to try, and why.

Three questions, each with a threshold; ``docs/advise.md`` gives the reason for each number.

1. Is a site faulty? If so: robust aggregation, and the site is left out of what follows.
2. Do the sites' images differ in appearance? If so: harmonise.
3. Do the sites' labels differ? If so: personalise.

Neither of the three: FedAvg is enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from statistics import median
from typing import Any, Literal

from fedshift.protocol.cards import MethodCard
from fedshift.protocol.measures import TaskCard
from fedshift.protocol.messages import POOLED
from fedshift.protocol.words import NAMED, count, plural, some
from fedshift.server.tables.overview import site_values
from fedshift.strategies.base import Family

VERBS: Mapping[Family, str] = {
    "harmonise": "harmonise",
    "personalise": "personalise",
    "robust": "aggregate robustly",
}
"""What each family does."""

FAULTY_SCORE = 0.75
FAULTY_LOSS = 2.0
"""A site is faulty when the best score of any model there is below the first part of the other
sites' median, and its own training loss above the second part of theirs. A score is a ratio, of
which 1 is the best."""
LEARNING = 1 / 3
"""But not where its training loss has fallen below this part of the first round's: a site that goes
on fitting its own labels has labels that fit its images, however high its loss."""
LEARNT = 0.5
"""Where the other sites' median best score is below this, the models tell nothing of a site yet."""
FEWEST_SITES = 3
"""With fewer sites that train, none can be told from the others."""
INTENSITY_JS = 0.1
SPECTRUM_DB = 1.5
"""A pair of sites differs in appearance above either of these distances, where ``MMD_P`` holds."""
MMD_P = 0.05
LABEL_SHIFT = 0.2
"""A pair's labels differ above this part of what is labelled, if chance gives less."""
SUBJECT_SPREAD = 0.2
"""The least standard deviation of how much of a subject is labelled, as a part of the mean."""
PAIRS = 0.1
"""The share of the pairs above which a shift counts: twice what chance would give."""
FEWEST_SUBJECTS = 5
"""A site with fewer summarised subjects is not compared with others."""
UNEQUAL = 4.0
"""Sizes are worth a word where the largest site has this many times the smallest one's slices."""
STAKE = 0.01
"""Differences in score below this are called none."""


@dataclass(frozen=True)
class Evidence:
    """What a run measured: the rows of ``shift.csv`` and ``cross_site.csv``, its task, the site
    cards by name, which sites train nothing, the last and the first round's training loss of those
    that told one, whether only the ``nearest`` pairs were compared, and the card of its method,
    None for any."""

    shift: Sequence[Mapping[str, Any]]
    cross_site: Sequence[Mapping[str, Any]]
    task: TaskCard
    cards: Mapping[str, Mapping[str, Any]]
    unseen: AbstractSet[str] = frozenset()
    loss: Mapping[str, float] = field(default_factory=dict)
    first_loss: Mapping[str, float] = field(default_factory=dict)
    nearest: bool = False
    method: MethodCard | None = None

    @cached_property
    def training(self) -> list[str]:
        """The sites that train, sorted."""
        return sorted(name for name in self.cards if name not in self.unseen)

    @cached_property
    def pairs(self) -> dict[tuple[str, str], dict[str, float]]:
        """The measured metrics of each pair of sites."""
        found: dict[tuple[str, str], dict[str, float]] = {}
        for row in self.shift:
            found.setdefault((row["site_a"], row["site_b"]), {})[row["metric"]] = row["value"]
        return found

    @cached_property
    def scores(self) -> dict[tuple[str, str], dict[str, float]]:
        """Each model's mean score at each site: the headline, a ratio, so that 1 is the best."""
        values = site_values(self.cross_site, self.task.headline)
        return {
            model: {site: self.score(value) for site, value in sites.items()}
            for model, sites in values.items()
        }

    def score(self, value: float) -> float:
        """The score of a value of the headline, and the value of a score."""
        return value if self.task.headline.better == "higher" else 1 - value

    def told(self, score: float) -> str:
        """A score as readers see it: as the headline's value."""
        return self.task.headline.cell(self.score(score))

    def subjects(self, site: str) -> int:
        """How many subjects the site's summary is of."""
        split = self.cards[site]["splits"]["test" if site in self.unseen else "train"]
        return int(split["subjects"])

    def labelled(self, site: str) -> int:
        """How many labelled slices the site trains on."""
        return int(self.cards[site]["splits"]["train"]["labelled"])


@dataclass(frozen=True)
class Finding:
    """The answer to one question; ``family`` is what it points to, None where the answer is no.

    ``measured`` is False where the run cannot tell.
    """

    question: str
    said: str
    family: Family | None = None
    measured: bool = True

    @property
    def answer(self) -> Literal["yes", "no", "not known"]:
        """In a word."""
        if not self.measured:
            return "not known"
        return "yes" if self.family else "no"


@dataclass(frozen=True)
class Advice:
    """What to try, the first thing first; empty where the evidence is too thin for any advice.

    ``suspects`` are the sites that look faulty, ``notes`` what bears on the advice beside it;
    ``training`` and ``unseen`` count the sites that train and those that do not; ``method`` is the
    run's.
    """

    families: tuple[Family, ...]
    findings: tuple[Finding, ...]
    suspects: tuple[str, ...]
    notes: tuple[str, ...]
    training: int
    unseen: int
    method: MethodCard | None = None

    @property
    def first(self) -> Family | None:
        """What to try first, or None."""
        return self.families[0] if self.families else None

    @property
    def headline(self) -> str:
        """The advice in a few words."""
        if not self.families:
            return "No advice: the evidence is too thin."
        if self.families == ("nothing",):
            return "Nothing: FedAvg is enough."
        said = ", then ".join(VERBS[family] for family in self.families)
        return f"{said[0].upper()}{said[1:]}."

    @property
    def reasons(self) -> list[str]:
        """The findings that decided, or all where none points anywhere."""
        decided = [item for item in self.findings if item.family or not item.measured]
        return [
            item.said if item.measured else f"{item.question} {item.said}"
            for item in decided or self.findings
        ]

    @property
    def sentence(self) -> str:
        """All of it as one paragraph, for the report."""
        return " ".join([f"What to try next: {self.headline}", *self.reasons, *self.notes])


def advise(evidence: Evidence) -> Advice:
    """Ask the three questions of a run."""
    suspects, fault = _fault(evidence)
    thin = {site for site in evidence.cards if evidence.subjects(site) < FEWEST_SUBJECTS}
    compared = [name for name in sorted(evidence.cards) if name not in {*suspects, *thin}]
    appearance, seen = _appearance(evidence, compared)
    labels, drawn = _labels(evidence, [name for name in compared if name not in evidence.unseen])
    # The kind that more of the pairs show is treated first.
    shifts = sorted(
        (found for found in ((seen, appearance), (drawn, labels)) if found[1].family),
        key=lambda found: -found[0],
    )
    families: list[Family] = [fault.family] if fault.family else []
    families += [finding.family for _, finding in shifts if finding.family]
    if not families and appearance.measured and labels.measured:
        families = ["nothing"]
    return Advice(
        families=tuple(families),
        findings=(fault, appearance, labels),
        suspects=tuple(suspects),
        notes=tuple(
            _notes(evidence, sorted(thin - set(suspects)))
            + (_stakes(evidence, suspects) if families else [])
        ),
        training=len(evidence.training),
        unseen=len(evidence.unseen),
        method=evidence.method,
    )


def _fault(evidence: Evidence) -> tuple[list[str], Finding]:
    """The labelled sites at which no model does well, and which cannot fit their own labels.

    A hard site, or one that outlines differently, still learns from its own labels; from images of
    noise, or labels of other subjects, nobody learns, the site itself included. Where the method
    tells no loss the scores decide alone.
    """
    question, headline = "Is a site faulty?", evidence.task.headline
    if not headline.ratio:
        said = f"There is no rule for {headline.title}, which is no ratio from 0 to 1."
        return [], Finding(question, said, measured=False)
    best = {
        site: max(values)
        for site in evidence.training
        if evidence.labelled(site)
        and (values := [found[site] for found in evidence.scores.values() if site in found])
    }
    if len(best) < FEWEST_SITES:
        said = f"That takes {FEWEST_SITES} labelled sites that train and were scored."
        return [], Finding(question, said, measured=False)
    usual = _others(best)
    if min(usual.values()) < LEARNT:
        said = (
            f"That takes models that have learnt something, with a value of {headline.title} of "
            f"{evidence.score(LEARNT)} at most sites."
        )
        return [], Finding(question, said, measured=False)
    # A loss below 0 is an adversary's or a likelihood, of which twice as much means nothing.
    usual_loss = _others({site: loss for site, loss in evidence.loss.items() if loss > 0})
    suspects = [
        site
        for site in best
        if best[site] < FAULTY_SCORE * usual[site]
        and (
            site not in usual_loss
            or evidence.loss[site]
            > max(FAULTY_LOSS * usual_loss[site], LEARNING * evidence.first_loss.get(site, 0.0))
        )
    ]
    if suspects:
        told = [
            f"the best model at {site} reaches {evidence.told(best[site])}, at the other sites "
            f"{evidence.told(usual[site])} in the median"
            + (
                f", and the training loss is {evidence.loss[site] / usual_loss[site]:.1f} times "
                "theirs"
                if site in usual_loss
                else ""
            )
            for site in suspects[:NAMED]
        ]
        if len(suspects) > NAMED:
            told.append(f"{len(suspects) - NAMED} more alike")
        said = (
            f"No model learns what {_all(suspects)} {'has' if len(suspects) == 1 else 'have'} "
            f"labelled ({'; '.join(told)}): look at the images and labels there first."
        )
        return suspects, Finding(question, said, "robust")
    worst = min(best, key=lambda site: best[site] - usual[site])
    said = (
        f"Every site can be learnt (the best model at {worst} reaches "
        f"{evidence.told(best[worst])}, at the other sites {evidence.told(usual[worst])} in the "
        "median)."
    )
    return [], Finding(question, said)


def _others(values: Mapping[str, float]) -> dict[str, float]:
    """The median of the other sites' values, for each site; empty for a single one."""
    if len(values) < 2:
        return {}
    return {
        site: median(value for other, value in values.items() if other != site) for site in values
    }


def _appearance(evidence: Evidence, sites: Sequence[str]) -> tuple[Finding, float]:
    """Whether the ``sites``' images differ, and the share of pairs that do."""
    question = "Do the images differ in appearance?"
    needed = ("mmd_p", "intensity_js", "spectrum_distance")
    pairs = _measured(evidence, sites, needed)
    if not pairs or evidence.nearest:
        return Finding(question, _unmeasured(evidence), measured=False), 0.0
    differing = [
        pair
        for pair, of in pairs.items()
        if of["mmd_p"] <= MMD_P
        and (of["intensity_js"] > INTENSITY_JS or of["spectrum_distance"] > SPECTRUM_DB)
    ]
    share = len(differing) / len(pairs)
    said = (
        f"Appearance differs beyond chance at {len(differing)} of {count(len(pairs), 'pair')} of "
        f"sites (Jensen-Shannon distance of the intensities up to "
        f"{max(of['intensity_js'] for of in pairs.values()):.2f}, spectra up to "
        f"{max(of['spectrum_distance'] for of in pairs.values()):.1f} dB apart)."
    )
    return Finding(question, said, "harmonise" if share > PAIRS else None), share


def _labels(evidence: Evidence, sites: Sequence[str]) -> tuple[Finding, float]:
    """Whether the ``sites``' labels differ, and the share of pairs that do."""
    part = evidence.task.part
    question = f"Do the labelled {plural(part)} differ?" if part else "Do the labels differ?"
    pairs = _measured(evidence, sites, ("label_shift",))
    if not pairs or evidence.nearest:
        return Finding(question, _unmeasured(evidence), measured=False), 0.0
    spread = _spread(evidence, sites)
    differing = [
        (first, second)
        for (first, second), of in pairs.items()
        if of["label_shift"]
        > max(
            LABEL_SHIFT,
            2.0 * spread * math.sqrt(1 / evidence.subjects(first) + 1 / evidence.subjects(second)),
        )
    ]
    share = len(differing) / len(pairs)
    largest = max(of["label_shift"] for of in pairs.values())
    said = (
        f"Labels differ beyond chance at {len(differing)} of {count(len(pairs), 'pair')} of sites "
        f"(by up to {largest:.0%} of what is labelled)."
    )
    return Finding(question, said, "personalise" if share > PAIRS else None), share


def _unmeasured(evidence: Evidence) -> str:
    if evidence.nearest:
        return (
            "Only each site's nearest others were compared (shift.pairs=nearest), which do not "
            "stand for all."
        )
    return "No two sites could be compared."


def _measured(
    evidence: Evidence, sites: Sequence[str], needed: Sequence[str]
) -> dict[tuple[str, str], dict[str, float]]:
    """The pairs of ``sites`` that have all of the metrics ``needed``."""
    return {
        pair: evidence.pairs[pair]
        for pair in combinations(sites, 2)
        if all(metric in evidence.pairs.get(pair, {}) for metric in needed)
    }


def _spread(evidence: Evidence, sites: Sequence[str]) -> float:
    """How much subjects of one site differ in what is labelled: standard deviation over mean, the
    median over the sites, the parts and the task's sizes, as the shared model tells them."""
    sizes = {
        measure.name
        for measure in evidence.task.measures
        if not measure.better and measure.low == 0
    }
    found = [
        row["std"] / row["mean"]
        for row in evidence.cross_site
        if (row["model"], row["trained_on"]) == ("global", POOLED)
        and row["metric"] in sizes
        and row["site"] in sites
        and row["mean"] > 0
        and math.isfinite(row["std"])
    ]
    return max(SUBJECT_SPREAD, median(found)) if found else SUBJECT_SPREAD


def _notes(evidence: Evidence, thin: Sequence[str]) -> list[str]:
    """What bears on the advice beside it: which sites were not compared, and unlike sizes."""
    notes = []
    if thin:
        told = some([f"{name} ({count(evidence.subjects(name), 'subject')})" for name in thin])
        notes.append(
            f"Too few subjects to be compared with others (at least {FEWEST_SUBJECTS}): {told}."
        )
    labelled = {name: size for name in evidence.training if (size := evidence.labelled(name))}
    if labelled and max(labelled.values()) >= UNEQUAL * min(labelled.values()):
        small, *_, large = sorted(labelled, key=labelled.__getitem__)
        notes.append(
            f"{large} has {labelled[large]} labelled slices to train on, {small} "
            f"{labelled[small]}: FedAvg counts them in that proportion; if small sites are to "
            "count alike, set strategy.weighting=uniform."
        )
    return notes


def _stakes(evidence: Evidence, suspects: Sequence[str]) -> list[str]:
    """What the shared model leaves to be won at the sites that train, where both were scored by a
    ratio; the ``suspects`` aside."""
    if not evidence.task.headline.ratio:
        return []
    shared = evidence.scores.get(("global", POOLED), {})
    gains = [
        shared[site] - own[site]
        for site in evidence.training
        if site not in suspects
        and site in shared
        and site in (own := evidence.scores.get(("local", site), {}))
    ]
    if not gains:
        return []
    gain = math.fsum(gains) / len(gains)
    if gain >= -STAKE:
        how = f"{gain:.3f} better than" if gain >= STAKE else "level with"
        return [
            f"The shared model is {how} the sites' own models at home in the mean, so there may be "
            "little to win at the sites that train."
        ]
    return [
        f"The shared model is {-gain:.3f} worse than the sites' own models at home in the mean."
    ]


def _all(names: Sequence[str]) -> str:
    if len(names) > NAMED + 1:
        return some(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
