"""A whole federation on this machine, from config to report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.client import ledger
from fedshift.client.policy import Policy
from fedshift.client.simulation import LocalSites
from fedshift.protocol.lock import alone_in
from fedshift.protocol.measures import TaskCard
from fedshift.protocol.storage import check_links, folder_name, keep_lines, write_atomic
from fedshift.runs import earlier, examples, provenance
from fedshift.runs.checking import for_report, settle
from fedshift.runs.config import Config, as_made
from fedshift.runs.engine import run_engine
from fedshift.runs.federation import open_federation
from fedshift.runs.folder import open_folder
from fedshift.runs.plugins import own_settings
from fedshift.runs.settings import EngineSettings, RunSettings, output_folder
from fedshift.runs.stored import build_plan, check_training, read_config
from fedshift.runs.watching import Tell, Watch, silent, unwatched
from fedshift.server import checkpoint, report, tracking
from fedshift.server.record import read_method, read_rounds
from fedshift.server.tables.files import (
    read_cases,
    read_cross_site,
    write_cases,
    write_cross_site,
)
from fedshift.server.tables.summary import summarise
from fedshift.sites.types import Federation


def simulate(config: Config, tell: Tell = silent, watch: Watch = unwatched) -> Path:
    """Train, score and report; return the run's folder, which ``config`` names."""
    RunSettings.from_config(config)
    federation, _ = open_federation(config)
    config["federation"]["name"] = federation.name
    out = output_folder(config)
    with alone_in(out):
        run(out, config, tell, watch)
    return out


def run(
    out: Path,
    config: Config,
    tell: Tell = silent,
    watch: Watch = unwatched,
    *,
    drawn: bool = True,
    checked: bool = False,
) -> None:
    """Run what ``config`` describes, or what is left of it: one run folder, or one with folds.

    ``watch`` opens a watcher for each run folder. With ``drawn`` the folder gets its figures and
    page. Unless it is ``checked``, the config's images are looked at first
    (:func:`fedshift.runs.checking.settle`).
    """
    check_links(out)
    if not checked:
        config, before = gone_on_with(out, config)
        check_training(config, open_federation(config)[0].parts)
        config = settle(config, tell, before)
    if config["protocol"] == "together":
        run_folder(out, config, tell, watch, drawn=drawn)
        return
    federation, _ = open_federation(config)

    def one(fold: Path, changed: Config) -> None:
        run_folder(fold, changed, tell, watch, drawn=drawn)

    in_turn(out, config, folds(config, federation), one, tell)
    if drawn:
        report.build(out)


def gone_on_with(out: Path, config: Config) -> tuple[Config, Config | None]:
    """``config`` for going on with the run in ``out``, and that of the run; None where it is not to
    be gone on with, or there is none."""
    stored = out / "config.yaml"
    before = read_config(stored) if config["resume"] and stored.exists() else None
    if before is not None and provenance.differing(out):
        config = as_made(config, before)
    return config, before


def run_folder(
    out: Path,
    config: Config,
    tell: Tell = silent,
    watch: Watch = unwatched,
    *,
    drawn: bool = True,
) -> None:
    """Fill one run folder, or what is left of it; see :func:`run`."""
    federation, data = open_federation(config)
    settings = RunSettings.from_config(config)
    engine = EngineSettings.from_config(config)
    policy = Policy.from_config(config["policy"])
    plan = build_plan(out, config, federation.parts, checkpoint.lineage(config))
    tracking.check(plan.tracking)
    done = open_folder(out, config, tell)
    earlier.complete(out)
    sites = LocalSites(
        federation=federation,
        data=data,
        policy=policy,
        folder=plan.checkpoints / "sites",
        seed=settings.seed,
        own=own_settings(config),
        pooled=any(strategy.pools for strategy in plan.strategies),
        amp=engine.amp,
    )
    if (out / "cross_site.csv").exists():
        if drawn:
            tell(f"{out} is finished; drawing its report again")
        with tracking.opened(out, plan.tracking, read_rounds(out)):
            pass  # A sink that is asked for afterwards gets the whole run.
    else:
        if not done:
            findings = json.dumps(for_report(config), indent=1, ensure_ascii=False)
            write_atomic(plan.checkpoints / "findings.json", findings + "\n")
        egress = Egress(sites, out / "egress.jsonl", done)
        plan = replace(plan, after_round=egress.collect, own_sites=True)
        title = f"{federation.name}, {config['method']['name']}, {config['strategy']['name']}"
        with watch(title) as progress:
            run_engine(plan, sites, engine, progress)
    if drawn:
        examples.draw(out, sites)
        report.build(out)


class Egress:
    """Gathers the simulated sites' ledgers into the run's ``egress.jsonl``, round by round."""

    def __init__(self, sites: LocalSites, path: Path, done: int) -> None:
        """Forget what left after round ``done``, which a resumed run repeats."""
        sites.roll_back(done)
        keep_lines(path, ledger.left_by(done))
        self._sites = sites
        self._path = path
        self._positions = sites.ledger_sizes()

    def collect(self) -> None:
        """Append the lines that are new since the last call."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._sites.egress(self._positions))


FOLDS = "folds"
"""The folder of a run's folds."""


@dataclass(frozen=True)
class Fold:
    """One run of a protocol that leaves something out in turn.

    ``name`` is its folder's; ``without`` says what is left out. The fold differs from the whole in
    ``changes`` to the config, and stands for ``sites``: with ``vendor``, for their images of it.
    """

    name: str
    without: str
    sites: tuple[str, ...]
    changes: Config
    vendor: str | None = None

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether a table's row is of what this fold stands for."""
        return row["site"] in self.sites and self.vendor in (None, row["vendor"])


def folds(config: Config, federation: Federation) -> list[Fold]:
    """The folds of the config's protocol; none when all sites train together.

    A vendor is left out with every site that has any image of it. Raises :class:`UserError` when
    a fold would leave no site to train.
    """
    protocol = config["protocol"]
    training = [site for site in federation.sites if site.role == "train"]
    names = [site.name for site in training]
    found = []
    if protocol == "leave_one_site_out":
        found = [Fold(name, name, (name,), {"left_out": [name]}) for name in names]
    elif protocol == "unlabel_one_site":
        for name in names:
            hidden = sorted({*config["data"]["unlabelled_sites"], name})
            data = {**config["data"], "unlabelled_sites": hidden}
            found.append(Fold(name, f"the labels of {name}", (name,), {"data": data}))
    elif protocol == "leave_one_vendor_out":
        for vendor in sorted({vendor for site in training for vendor in site.vendors}):
            left = tuple(site.name for site in training if vendor in site.vendors)
            changes = {"left_out": list(left)}
            found.append(Fold(folder_name(vendor), f"vendor {vendor}", left, changes, vendor))
    for fold in found:
        if len(fold.sites) == len(training):
            of = "with images of other vendors" if fold.vendor else "that trains"
            raise UserError(
                f"protocol={protocol}: without {fold.without} no site could train; the federation "
                f"needs another site {of}"
            )
    return found


def in_turn(
    out: Path,
    config: Config,
    turns: Sequence[Fold],
    one: Callable[[Path, Config], None],
    tell: Tell,
) -> None:
    """Run ``one`` fold after the other, each in a run folder of its own under ``folds/``.

    The tables of ``out`` hold, for every site, the models that never saw it, or never its labels.
    Of a site with several vendors that are left out in turn, each image has the models that never
    saw its vendor; its summary lacks the measures that ``cases.csv`` lacks, which the report tells.
    """
    open_folder(out, config, tell)
    cases: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    measured: set[tuple[str, str]] = set()
    for number, turn in enumerate(turns, start=1):
        tell(f"fold {number} of {len(turns)}: without {turn.without}")
        fold = out / FOLDS / turn.name
        changed = {**config, "out": str(fold), "protocol": "together", **turn.changes}
        one(fold, changed)
        task = _measured(fold)
        cases += filter(turn.holds, read_cases(fold / "cases.csv", task))
        rows = read_cross_site(fold / "cross_site.csv", task)
        measured |= {(row["site"], row["metric"]) for row in rows if row["site"] in turn.sites}
        summary += filter(turn.holds, rows)
    task = _measured(out)
    whole = {row["site"] for row in summary}
    mixed = [row for row in cases if row["site"] not in whole]
    write_cases(out / "cases.csv", cases, task)
    summary += summarise(mixed, task, config["seed"])
    lacking = measured - {(row["site"], row["metric"]) for row in summary}
    problems = {"problems": _unmeasured(lacking, task)}
    write_atomic(out / "checkpoints" / "evaluation.json", json.dumps(problems, indent=1) + "\n")
    write_cross_site(out / "cross_site.csv", summary, task)


def _unmeasured(lacking: Iterable[tuple[str, str]], task: TaskCard) -> list[str]:
    """A sentence for each site of several vendors: what of (site, measure) is measured of all its
    cases by one model, in the folds alone."""
    titles: dict[str, list[str]] = {}
    for site, name in sorted(lacking):
        titles.setdefault(site, []).append(task.measure(name).title)
    return [
        f"{site} has images of several vendors, each scored by other models, so that it lacks "
        f"{', '.join(names)}; they are in the folds"
        for site, names in titles.items()
    ]


def _measured(run: Path) -> TaskCard:
    method = read_method(run)
    assert method is not None, "a finished run says what it measures"
    return method.task
