"""A run folder, read once for its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fedshift import UserError
from fedshift.protocol.cards import MethodCard
from fedshift.protocol.measures import Measure, TaskCard
from fedshift.protocol.messages import POOLED
from fedshift.protocol.storage import read_json, read_json_lines, read_yaml
from fedshift.protocol.words import count, some
from fedshift.server.advice.rules import Evidence, advise
from fedshift.server.record import IDENTITY, read_method, read_rounds
from fedshift.server.report.matrix import Matrix
from fedshift.server.report.words import Model, counting_words, format_time, model_key, model_label
from fedshift.server.shift import NO_DISTANCES
from fedshift.server.tables.correlation import RankCorrelation, lost, rank_correlation
from fedshift.server.tables.files import read_cross_site, read_shift
from fedshift.server.tables.overview import Overview, comparable, narrowed, overview

Row = dict[str, Any]


@dataclass
class Sent:
    """What one site sent for one purpose, over the whole run."""

    bytes: int = 0
    records: int = 0
    names: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Problem:
    """One reason why a site, or a whole round, did not count, and the rounds it happened in."""

    kind: str
    site: str
    reason: str
    rounds: tuple[int, ...]


class Pair(NamedTuple):
    """What ``home``'s own model loses at ``site``, in the headline, and the shift between them."""

    home: str
    site: str
    shift: float
    drop: float


class SparseRow(NamedTuple):
    """What ``model`` reaches at ``site`` in a part of the label, in measures that only some cases
    have: the mean and the number of these cases, by the measure's name."""

    model: Model
    site: str
    part: str
    values: dict[str, tuple[float, int]]


class Picture(NamedTuple):
    """What the method shows of its work at ``site``: a PNG, its title and its caption."""

    site: str
    path: Path
    title: str
    caption: str


@dataclass(frozen=True)
class Run:
    """The contents of a run folder; a part that the folder does not hold is empty.

    ``task`` says what was measured and ``method`` what its sites said of it, None before the first
    round. ``cards`` holds the site cards by
    name, ``notes`` a sentence for everything missing from the evaluation, and ``encoder`` says in
    whose features shift was measured; ``shift_pairs`` how the pairs of sites were chosen (``all``,
    ``sampled`` or ``nearest``), and ``shift_told`` tells it. ``findings`` are what the doctor found
    in the files, in words that may be passed on.
    """

    folder: Path
    config_text: str
    config: dict[str, Any]
    task: TaskCard | None
    method: MethodCard | None
    cards: dict[str, dict[str, Any]]
    rounds: list[dict[str, Any]]
    cross_site: list[dict[str, Any]]
    shift: list[dict[str, Any]]
    notes: tuple[str, ...]
    encoder: str
    shift_pairs: str = "all"
    shift_told: str = ""
    findings: tuple[dict[str, str], ...] = ()

    @property
    def in_turn(self) -> Literal["", "site", "vendor", "labels"]:
        """What was left out of each site in turn, if anything: all of it, with all other sites of
        its vendor, or its labels. A column of the matrix then holds models that never saw that."""
        protocol = self.config.get("protocol")
        if protocol == "leave_one_site_out":
            return "site"
        if protocol == "leave_one_vendor_out":
            return "vendor"
        return "labels" if protocol == "unlabel_one_site" else ""

    @cached_property
    def folds(self) -> tuple[Run, ...]:
        """The runs that leave a site, a vendor or a site's labels out each, by its name
        (``folder.name``)."""
        return tuple(map(read_run, _parents(self.folder.glob("folds/*/config.yaml"))))

    @cached_property
    def evaluations(self) -> tuple[Run, ...]:
        """What ``fedshift evaluate`` added to this run, by name (``folder.name``)."""
        return tuple(map(read_run, _parents(self.folder.glob("evaluations/*/cross_site.csv"))))

    @cached_property
    def pictures(self) -> dict[str, list[Picture]]:
        """What the method shows of its work, by site; of the files listed those that are there."""
        figures = self.folder / "figures"
        found: dict[str, list[Picture]] = {}
        for item in read_json(figures / "method.json", _pictures) or []:
            # The name alone: a run folder from elsewhere must not reach other files.
            path = figures / Path(item["file"]).name
            if path.is_file():
                picture = Picture(item["site"], path, item["title"], item["caption"])
                found.setdefault(picture.site, []).append(picture)
        return found

    @cached_property
    def undrawn(self) -> tuple[str, ...]:
        """A sentence for every picture that could not be drawn."""
        return tuple(read_json(self.folder / "figures" / "undrawn.json", _sentences) or ())

    @cached_property
    def deployed(self) -> bool:
        """Whether the sites were real ones, and not of a simulation."""
        return (self.folder / IDENTITY).exists()

    @cached_property
    def egress(self) -> dict[str, dict[str, Sent]]:
        """The sums of the ledger by site and purpose; of the real sites, not the pooled one."""
        found: dict[str, dict[str, Sent]] = {}
        for record in read_json_lines(self.folder / "egress.jsonl", _sent):
            if record["site"] == POOLED:
                continue
            sent = found.setdefault(record["site"], {}).setdefault(record["purpose"], Sent())
            sent.bytes += record["bytes"]
            sent.records += 1
            sent.names.add(record["record"])
        return found

    @cached_property
    def unlabelled(self) -> frozenset[str]:
        """The sites without a labelled training slice."""
        return frozenset(
            name for name, card in self.cards.items() if not card["splits"]["train"]["labelled"]
        )

    @cached_property
    def unseen(self) -> frozenset[str]:
        """The sites that take no part in training: those without a card that says so or, without
        any card, without a model. None where each site is left out in turn: there every site
        trains, in the other folds."""
        if self.in_turn:
            return frozenset()
        names = {row["site"] for row in self.cross_site} | set(self.cards)
        if self.cards:
            trained = {name for name, card in self.cards.items() if card["role"] == "train"}
        else:
            trained = {row["trained_on"] for row in self.cross_site} - {POOLED}
            for line in self.rounds:
                trained.update(line["sites"], line["failed"], line["rejected"])
        return frozenset(names - trained) if trained else frozenset()

    @cached_property
    def evidence(self) -> Evidence:
        """What advice rests on. Ask only where something is :attr:`scored`."""
        assert self.task is not None
        told = [
            (site, metrics["loss"])
            for line in self.rounds
            for site, metrics in line["sites"].items()
            if metrics.get("loss") is not None
        ]
        return Evidence(
            self.shift,
            self.cross_site,
            self.task,
            self.cards,
            self.unseen,
            loss=dict(told),
            first_loss=dict(reversed(told)),
            nearest=self.shift_pairs == "nearest",
            method=self.method,
        )

    @cached_property
    def advice(self) -> str:
        """What to try next and why, in a few sentences; empty where no shift was measured."""
        if not self.shift or self.task is None:
            return ""
        features = f" (Features: {self.encoder}.)" if self.encoder else ""
        return f"{advise(self.evidence).sentence}{features}"

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Every site's name: the training sites sorted, then the unseen ones."""
        names = set(self.cards) | {row["site"] for row in self.cross_site}
        return tuple(sorted(names, key=lambda name: (name in self.unseen, name)))

    @cached_property
    def vendors(self) -> dict[str, str]:
        """The vendor of each scored site, "A+B" where it has several, empty where unknown."""
        return {row["site"]: row["vendor"] for row in self.cross_site}

    @property
    def headline(self) -> Measure:
        """What the models are ranked by. Ask only where something is :attr:`scored`."""
        assert self.task is not None
        return self.task.headline

    @property
    def scored(self) -> bool:
        """Whether a model's headline was measured at some site."""
        return self.task is not None and self.headline.name in self._rows

    @property
    def part_name(self) -> str:
        """What the parts of a label are called, "" where there are none."""
        return self.task.part if self.task else ""

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts of ``cross_site.csv``, in the order of the labels where cards give it; none of
        a task without."""
        declared = [name for card in self.cards.values() for name in card["parts"]]
        present = {row["part"]: None for row in self.cross_site if row["part"]}
        return tuple(dict.fromkeys([name for name in declared if name in present] + [*present]))

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """What ``cross_site.csv`` tells of every case, the headline first."""
        return tuple(item for item in self._told if not item.sparse and not item.whole)

    @cached_property
    def sparse_measures(self) -> tuple[Measure, ...]:
        """What it tells of those cases that have it."""
        return tuple(item for item in self._told if item.sparse)

    @cached_property
    def whole_measures(self) -> tuple[Measure, ...]:
        """What it tells of whole splits."""
        return tuple(item for item in self._told if item.whole)

    @property
    def _told(self) -> list[Measure]:
        return [item for item in self.task.measures if item.name in self._rows] if self.task else []

    @cached_property
    def scores(self) -> list[Row]:
        """The rows of ``cross_site.csv``. Personal models that are scored at home alone are one
        model here, ``("personal", "all")``: each site's own."""
        personal = [row for row in self.cross_site if row["model"] == "personal"]
        if any(row["trained_on"] != row["site"] for row in personal):
            return self.cross_site
        return [
            {**row, "trained_on": "all"} if row["model"] == "personal" else row
            for row in self.cross_site
        ]

    @cached_property
    def _rows(self) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = {}
        for row in self.scores:
            rows.setdefault(row["metric"], []).append(row)
        return rows

    def rows(self, measure: Measure, part: str | None) -> list[Row]:
        """The rows of ``cross_site.csv`` for one measure; ``part=None`` keeps them all."""
        return [row for row in self._rows[measure.name] if part in (None, row["part"])]

    @cached_property
    def sparse(self) -> list[SparseRow]:
        """What each model reaches in the sparse measures, by model, site and part."""
        found: dict[tuple[Model, str, str], dict[str, tuple[float, int]]] = {}
        for measure in self.sparse_measures:
            for row in self._rows[measure.name]:
                key = (row["model"], row["trained_on"]), row["site"], row["part"]
                found.setdefault(key, {})[measure.name] = row["mean"], row["n"]
        sites = {site: place for place, site in enumerate(self.sites)}
        ordered = sorted(found, key=lambda key: (model_key(key[0]), sites[key[1]], key[2]))
        return [SparseRow(*key, found[key]) for key in ordered]

    def label(self, model: Model) -> str:
        """A model's name as the figures and the page print it."""
        label = model_label(model)
        if not self.in_turn or model[1] != POOLED:
            return label
        part = {"vendor": "'s vendor", "labels": "'s labels"}.get(self.in_turn, "")
        return f"{label}, without the site{part}"

    def setting(self, group: str) -> str:
        """The name chosen for a group of the configuration, such as ``strategy``."""
        return str((self.config.get(group) or {}).get("name", "unnamed"))

    def matrix(self, measure: Measure, part: str | None = None) -> Matrix:
        """Return ``measure`` of every model at every scored site; ``part=None`` averages over the
        parts that compare there (:func:`fedshift.server.tables.overview.comparable`)."""
        rows = self.rows(measure, part)
        models = tuple(sorted({(row["model"], row["trained_on"]) for row in rows}, key=model_key))
        scored = {row["site"] for row in rows}
        sites = tuple(site for site in self.sites if site in scored)
        row_of = {model: index for index, model in enumerate(models)}
        column_of = {site: index for index, site in enumerate(sites)}
        shape = (len(models), len(sites))
        total, low, high = np.zeros(shape), np.full(shape, np.nan), np.full(shape, np.nan)
        count, scores, failed = np.zeros(shape), np.zeros(shape, int), np.zeros(shape, int)
        for row in comparable(rows, measure):
            cell = row_of[row["model"], row["trained_on"]], column_of[row["site"]]
            scores[cell] += row["n"]
            failed[cell] += row["n_failed"]
            total[cell] += row["mean"]
            count[cell] += 1
            low[cell], high[cell] = row["ci_low"], row["ci_high"]
        low[count > 1] = high[count > 1] = np.nan
        mean = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
        return Matrix(measure, part, models, sites, mean, low, high, scores, failed)

    def parts_told(self, measure: Measure) -> list[str]:
        """Over which parts the means of ``measure`` are, where not all models of a site were scored
        on the same: a sentence for all sites that are alike in that, and what it means."""
        found = narrowed(self.scores, measure)
        if not found:
            return []
        alone = f"a {self.part_name} by itself is in the report and in cross_site.csv"
        return [
            *counting_words(found, self.parts),
            f"A single site's model has no mean where it lacks one that counts; {alone}.",
        ]

    def overviews(self, measure: Measure, part: str | None = None) -> dict[Model, Overview]:
        """The overview of each model that every training site of the matrix scored: a mean over
        fewer sites would not compare. Empty for a measure without a better direction."""
        if not measure.better:
            return {}
        matrix = self.matrix(measure, part)
        trained = np.array([site not in self.unseen for site in matrix.sites])
        if not trained.any():
            return {}
        whole = ~np.isnan(matrix.mean[:, trained]).any(axis=1)
        compared = {model for model, kept in zip(matrix.models, whole, strict=True) if kept}
        return {
            model: item
            for item in overview(self.rows(measure, part), measure, self.unseen)
            if (model := (item.model, item.trained_on)) in compared
        }

    def curve(self, key: str, arm: str) -> dict[str, np.ndarray]:
        """Return a metric per site as (rounds,) float64, nan where a round does not report it.

        ``arm`` is ``local``, ``pooled`` or ``federated``, whatever the federated strategy's name.
        """
        found: dict[str, np.ndarray] = {}
        for index, line in enumerate(self.rounds):
            part = line if arm == self.main_arm else line.get("baselines", {}).get(arm, {})
            for site, metrics in part.get("sites", {}).items():
                if metrics.get(key) is not None:
                    found.setdefault(site, np.full(len(self.rounds), np.nan))[index] = metrics[key]
        return dict(sorted(found.items()))

    @cached_property
    def validation(self) -> dict[str, dict[str, np.ndarray]]:
        """The curves of the headline on the validation splits, by arm and site."""
        arms = ("federated", "local", "pooled")
        key = f"val_{self.headline.name}" if self.task else ""
        return {arm: self.curve(key, arm) for arm in arms}

    @property
    def main_arm(self) -> str:
        """What the strategy trains: ``local`` and ``pooled`` may also be run for themselves."""
        name = self.setting("strategy")
        return name if name in ("local", "pooled") else "federated"

    @cached_property
    def simulated(self) -> str:
        """What the simulated clock showed and who was late or away, in a few sentences; empty
        without a clock."""
        if not self.rounds or "clock_s" not in self.rounds[-1]:
            return ""
        took = format_time(self.rounds[-1]["clock_s"])
        said = f"On the simulated clock {count(len(self.rounds), 'round')} took {took}."
        for what, key in (("Not waited for", "stragglers"), ("Could not be asked", "dropouts")):
            times = Counter(name for line in self.rounds for name in line[key])
            if times:
                named = [
                    f"{name} ({count(number, 'time')})" for name, number in times.most_common()
                ]
                said += f" {what}: {some(named)}."
        return said

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """What failed, was rejected or was skipped, each once with its rounds; then the same of
        every fold."""
        seen: dict[tuple[str, str, str], list[int]] = {}
        for line in self.rounds:
            found = []
            for arm, part in ((self.main_arm, line), *line.get("baselines", {}).items()):
                of = "" if arm == self.main_arm else f"{arm} model: "
                found += [(f"{of}failed", *item) for item in part["failed"].items()]
                found += [(f"{of}rejected", *item) for item in part.get("rejected", {}).items()]
                for site, metrics in part["sites"].items():
                    if metrics.get("nonfinite_steps"):
                        reason = "some of its training steps"
                        found.append((f"{of}non-finite gradient", site, reason))
                    if metrics.get("statistics_withheld"):
                        reason = "they summarise fewer images than its policy.min_count"
                        found.append((f"{of}statistics withheld", site, reason))
                if part.get("skipped"):
                    found.append((f"{of}round skipped", "all sites", part["skipped"]))
            for key in found:
                seen.setdefault(key, []).append(line["round"])
        own = [Problem(*key, tuple(rounds)) for key, rounds in sorted(seen.items())]
        return (
            *own,
            *(
                replace(problem, kind=f"without {fold.folder.name}: {problem.kind}")
                for fold in self.folds
                for problem in fold.problems
            ),
        )

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """A sentence for every model, site or statistic that the evaluation lacks, of every fold
        too."""
        folds = [
            f"without {fold.folder.name}: {note}" for fold in self.folds for note in fold.notes
        ]
        return (*self.notes, *folds)

    @cached_property
    def drops(self) -> dict[tuple[str, str], float]:
        """What each site's own model loses at each other site, in the headline over the parts that
        both score, sorted by name."""
        return lost(self.cross_site, self.headline) if self.scored else {}

    def pairs(self, shift_metric: str) -> list[Pair]:
        """The ordered pairs of sites with both a shift and a drop, sorted by name."""
        shift = {
            (row["site_a"], row["site_b"]): row["value"]
            for row in self.shift
            if row["metric"] == shift_metric
        }
        found = []
        for (home, site), drop in self.drops.items():
            value = shift.get((home, site), shift.get((site, home), np.nan))
            if np.isfinite(value):
                found.append(Pair(home, site, value, drop))
        return found

    @cached_property
    def correlations(self) -> list[RankCorrelation]:
        """Each shift distance against the drop in the headline, where a pair of sites has both; the
        strongest first. None of the nearest pairs alone, which do not stand for all."""
        if not self.drops or self.shift_pairs == "nearest":
            return []
        found = rank_correlation(
            self.shift,
            self.cross_site,
            self.headline,
            skip=NO_DISTANCES,
            sampled=self.shift_pairs == "sampled",
        )
        return sorted(
            (item for item in found if item.n_pairs),
            key=lambda item: (-abs(np.nan_to_num(item.rho)), item.metric),
        )


def read_run(folder: Path) -> Run:
    """Read what the run folder holds so far.

    Raises :class:`fedshift.UserError` when ``folder`` is no run folder or a file in it is broken.
    """
    config_path = folder / "config.yaml"
    if not config_path.is_file():
        raise UserError(
            f"{folder} is not a run folder, as it has no config.yaml: "
            "give the folder that a simulation wrote to (its `out`)."
        )
    config = read_yaml(config_path)
    config_text = config_path.read_text(encoding="utf-8")
    home = run_of(folder)
    cards = read_json(home / "checkpoints" / "sites.json", _cards) or []
    evaluation = read_json(folder / "checkpoints" / "evaluation.json", _evaluation) or {}
    cross_site_path, shift_path = folder / "cross_site.csv", folder / "shift.csv"
    method = read_method(home)
    task = method.task if method is not None else None
    if task is None and cross_site_path.is_file():
        raise UserError(
            f"{folder} holds scores and no checkpoints/method.json, which says what was measured; "
            "restore that file from a copy"
        )
    return Run(
        folder=folder,
        config_text=config_text,
        config=config,
        task=task,
        method=method,
        # The simulated site that holds all data trains the pooled reference; it is no real site.
        cards={card["name"]: card for card in cards if card["name"] != POOLED},
        rounds=read_rounds(folder),
        cross_site=read_cross_site(cross_site_path, task)
        if task is not None and cross_site_path.is_file()
        else [],
        shift=read_shift(shift_path) if shift_path.is_file() else [],
        notes=tuple(evaluation.get("problems", ())),
        encoder=evaluation.get("encoder", ""),
        shift_pairs=evaluation.get("shift_pairs", {}).get("how", "all"),
        shift_told=evaluation.get("shift_pairs", {}).get("told", ""),
        findings=tuple(read_json(home / "checkpoints" / "findings.json", list) or ()),
    )


def run_of(folder: Path) -> Path:
    """The run that a folder belongs to: its own, or of an evaluation, which has no sites and no
    method of its own, the one whose models it scored."""
    parent = folder.resolve().parent
    return parent.parent if parent.name == "evaluations" else folder


def _parents(paths: Iterator[Path]) -> list[Path]:
    return sorted(path.parent for path in paths)


def _cards(node: Any) -> list[dict[str, Any]]:
    cards = []
    for fields in node:
        # An older run calls them by what they were.
        card = {**fields, "parts": fields["parts"] if "parts" in fields else fields["structures"]}
        words = [card["name"], card["role"], *card["parts"], *card.get("vendors", ())]
        splits = [counts for split in card["splits"].values() for counts in split.values()]
        if not all(isinstance(word, str) for word in (*words, *card.get("notes", ()))):
            raise ValueError("a name is no text")
        if not all(isinstance(number, int) for number in splits):
            raise ValueError("a count is no number")
        _ = card["splits"]["train"]["labelled"]
        cards.append(card)
    return cards


def _evaluation(node: Any) -> dict[str, Any]:
    if not all(isinstance(problem, str) for problem in node.get("problems", ())):
        raise ValueError("problems are no sentences")
    if not all(isinstance(text, str) for text in node.get("shift_pairs", {}).values()):
        raise ValueError("shift_pairs holds no texts")
    return {**node, "encoder": str(node.get("encoder", ""))}


def _pictures(node: Any) -> list[dict[str, str]]:
    return [{key: str(item[key]) for key in ("site", "file", "title", "caption")} for item in node]


def _sentences(node: Any) -> list[str]:
    return [str(item) for item in node]


def _sent(entry: Any) -> dict[str, Any]:
    sent = {key: str(entry[key]) for key in ("site", "purpose", "record")}
    return {**sent, "bytes": int(entry["bytes"])}
