"""The grid of a comparison: from swept options to cells, each with its whole configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from fedshift import UserError, strategies
from fedshift.client.contract.method import Participation
from fedshift.client.methods import METHODS
from fedshift.client.policy import Policy
from fedshift.protocol.storage import folder_name
from fedshift.runs.checking import settle
from fedshift.runs.config import Config, choices, load
from fedshift.runs.federation import open_federation
from fedshift.runs.plugins import KINDS, check_one_process, rules_of, told_settings
from fedshift.runs.settings import EngineSettings, RunSettings, as_folder
from fedshift.runs.simulate import folds
from fedshift.runs.stored import build_plan
from fedshift.runs.watching import Tell, silent
from fedshift.server import checkpoint
from fedshift.server.comparison.cells import Cell
from fedshift.sites import DataSettings
from fedshift.sites.types import Federation

SWEEP = "comparison.json"
"""The grid as asked for; with it a folder is a comparison."""
OWN = ("out", "baseline", "hours", "engine.workers", "engine.devices")
"""What is said of the comparison as a whole; a sweep over these would be no comparison."""

_REFUSED = {
    "baselines": "local and pooled are strategies of the grid, as in strategy=local,pooled,fedavg",
    "resume": "a comparison always goes on with what its folder holds",
}
_PREPARED = ("data.normalise", "data.size", "data.spacing_mm", "data.unlabelled_sites")
"""What of ``data`` may be swept: it changes neither the subjects and their splits nor the grid and
structures they are scored in."""


@dataclass(frozen=True)
class Sweep:
    """What was asked for: options that all cells share and the axes, each in the order typed, as
    texts in Hydra's grammar; ``own`` are those of :data:`OWN`."""

    fixed: Mapping[str, str]
    axes: Mapping[str, tuple[str, ...]]
    own: Mapping[str, str] = field(default_factory=dict)
    config_dir: Path | None = None
    """A folder of further configs."""

    @classmethod
    def parse(cls, overrides: Sequence[str], config_dir: Path | None = None) -> Sweep:
        """Sort ``KEY=VALUE`` texts; Hydra's sweeps (``a,b``, ``range(0,3)``, ``choice(a,b)``, and
        ``glob(fed*)`` over a group's choices) become axes.

        Raises :class:`UserError` for a text that is no option, an option given twice, a value
        named twice in a sweep, and what cannot be swept or set in a comparison.
        """
        fixed: dict[str, str] = {}
        axes: dict[str, tuple[str, ...]] = {}
        own: dict[str, str] = {}
        for text in overrides:
            key, equals, value = text.partition("=")
            if not equals or not key:
                raise UserError(f"'{text}' is not KEY=VALUE; write for example strategy=fedavg")
            if key in _REFUSED:
                raise UserError(f"{key} is not for comparisons: {_REFUSED[key]}")
            if key in fixed or key in axes or key in own:
                raise UserError(f"{key} is given twice; name all its values once, as in seed=0,1,2")
            if key in OWN:
                own[key] = value
                continue
            values = _swept(key, text, config_dir)
            if values is None:
                fixed[key] = value
                continue
            if key.partition(".")[0] in ("data", "federation", "protocol", "task") and (
                key not in _PREPARED
            ):
                raise UserError(
                    f"{text}: cells are compared subject by subject, so that all need the same "
                    f"images and structures; make a comparison for each value of {key}"
                )
            if len(set(values)) < len(values):
                raise UserError(f"{text} names a value twice; name each once")
            axes[key] = values
        return cls(fixed, axes, own, config_dir)

    @property
    def out(self) -> Path:
        """The comparison's folder; raises :class:`UserError` when none is named."""
        if not self.own.get("out"):
            raise UserError("a comparison needs a folder; name it with out=DIR")
        return as_folder(_plain("out", self.own["out"]))

    @property
    def hours(self) -> float | None:
        """The simulated time at which the entrants are also ranked; None when none is named.

        Raises :class:`UserError` for what is no number above 0.
        """
        asked = self.own.get("hours")
        if asked is None:
            return None
        try:
            hours = float(asked)
        except ValueError:
            hours = math.nan
        if not 0 < hours < math.inf:
            raise UserError(f"hours={asked} is no number of hours above 0")
        return hours

    def cells(self) -> list[Cell]:
        """The product of the axes, the last one varying fastest."""
        folder = self.out / "cells"
        found = []
        for values in product(*self.axes.values()):
            settings = dict(zip(self.axes, values, strict=True))
            name = ",".join(f"{key}={value}" for key, value in settings.items())
            found.append(Cell(settings, folder / folder_name(name or "run")))
        return found

    def baseline(self, cells: Sequence[Cell]) -> str:
        """The entrant that all others are tested against.

        It is the first that has all settings of ``baseline=``, by default ``strategy=fedavg``, or
        else the first of all. Raises :class:`UserError` when none has what was asked for.
        """
        entrants = list(dict.fromkeys(cell.entrant for cell in cells))
        asked = self.own.get("baseline")
        if asked in entrants:
            return asked
        wanted = set((asked or "strategy=fedavg").split())
        for cell in cells:
            if wanted <= {f"{key}={value}" for key, value in cell.settings.items()}:
                return cell.entrant
        if asked is None:
            return entrants[0]
        raise UserError(
            f"baseline={asked} is no entrant of this comparison; choose from "
            + ", ".join(f"'{entrant}'" for entrant in entrants)
        )

    def to_json(self) -> str:
        """The contents of ``comparison.json``: what decides which runs the comparison holds."""
        cells = self.cells()
        sweep = {
            "fixed": dict(self.fixed),
            "axes": {key: list(values) for key, values in self.axes.items()},
            "baseline": self.baseline(cells),
            "cells": {cell.folder.name: dict(cell.settings) for cell in cells},
        }
        return json.dumps(sweep, indent=1, ensure_ascii=False) + "\n"


def read_sweep(folder: Path) -> dict[str, Any]:
    """What :meth:`Sweep.to_json` wrote into the comparison ``folder``.

    Raises :class:`UserError` when it cannot be read.
    """
    path = folder / SWEEP
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
        if all(isinstance(stored[key], dict) for key in ("fixed", "axes", "cells")):
            return stored
        reason = "it holds something else"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    raise UserError(
        f"{path} cannot be read ({reason}); restore it, or run the comparison into another out=DIR"
    )


def _plain(key: str, value: str) -> Any:
    """What ``value`` is in Hydra's grammar, which the options of the comparison as a whole are not
    composed by; a text that it cannot read stands for itself."""
    try:
        override: Override = OverridesParser.create().parse_overrides([f"{key}={value}"])[0]
    except HydraException:
        return value
    return value if override.is_sweep_override() else override.value()


def _swept(key: str, text: str, config_dir: Path | None) -> tuple[str, ...] | None:
    """The values that an option sweeps over, or None when it has one value."""
    try:
        override: Override = OverridesParser.create().parse_overrides([text])[0]
    except HydraException:
        return None  # Such as a regular expression, which is taken as it stands.
    if not override.is_sweep_override():
        return None
    value = override.value()
    if isinstance(value, Glob):
        found = tuple(value.filter(choices(key, config_dir)))
        if not found:
            raise UserError(f"{text} matches no choice of {key}")
        return found
    if not override.is_discrete_sweep() or getattr(value, "shuffle", False):
        raise UserError(f"{text} has no fixed list of values; name them, as in {key}=a,b")
    return tuple(override.sweep_string_iterator())


@dataclass(frozen=True)
class PlannedCell:
    """A cell, with the configuration that it runs, its fingerprint, the sites it opens, and the
    work it is, in site steps; ``folds`` is the number of runs in it. Its method ``adapts`` where it
    trains from labelled to unlabelled sites and needs both."""

    cell: Cell
    config: Config
    identity: str
    federation: Federation
    data: DataSettings
    work: float
    folds: int
    adapts: bool


Opened = dict[str, tuple[Config, Federation, DataSettings]]
"""By what decides them: the planned config node ``data``, the sites and their settings."""


def prepare(sweep: Sweep, tell: Tell = silent) -> list[PlannedCell]:
    """Compose and check every cell's configuration, and look at the images they share.

    Raises :class:`UserError`, naming the cell, for a wrong option in any of them, and for cells
    that would take different numbers of steps although none was asked for.
    """
    cells = sweep.cells()
    federations: Opened = {}
    told: set[str] = set()  # Seeds share most of what is to be told.
    prepared = []
    for cell in cells:
        try:
            prepared.append(_prepared(sweep, cell, federations, tell, told))
        except UserError as error:
            if not cell.settings:
                raise
            raise UserError(f"{' '.join(_pairs(cell))}: {error}") from error
    _check_budgets(sweep, prepared)
    if sweep.hours is not None and any(one.config["clock"]["name"] == "none" for one in prepared):
        raise UserError(
            f"hours={sweep.own['hours']} ranks by the simulated clock, and there is none; add "
            "clock=hospitals or clock=lan"
        )
    return prepared


def _pairs(cell: Cell) -> list[str]:
    return [f"{key}={value}" for key, value in cell.settings.items()]


def _prepared(
    sweep: Sweep, cell: Cell, federations: Opened, tell: Tell, told: set[str]
) -> PlannedCell:
    fixed = [f"{key}={value}" for key, value in sweep.fixed.items()]
    workers = [f"{key}={value}" for key, value in sweep.own.items() if key == "engine.workers"]
    config = load(["baselines=[]", *workers, *fixed, *_pairs(cell)], sweep.config_dir)
    return _checked(cell, config, federations, tell, told)


def _checked(
    cell: Cell, config: Config, federations: Opened, tell: Tell, told: set[str]
) -> PlannedCell:
    """The cell with its composed ``config``; ``federations`` are those opened so far."""
    settings = RunSettings.from_config(config)
    rules = rules_of([strategies.build(config["strategy"])])
    check_one_process(
        [*((kind, config[kind]["name"]) for kind in KINDS), *(("rule", name) for name in rules)],
        "simulate each cell with engine.workers=1, or make it a module of an installed package",
    )
    if EngineSettings.from_config(config).name != "inline":
        raise UserError("the engine of a comparison is the inline one; leave engine out")
    method = METHODS.build(told_settings(config))
    # Many seeds and strategies share a federation, whose table may be long.
    nodes = [config[node] for node in ("federation", "data", "policy")]
    key = json.dumps([*nodes, settings.seed])
    if key not in federations:
        settled = settle(config, tell, told=told)
        federations[key] = (settled["data"], *open_federation(settled))
    config["data"], federation, data = federations[key]
    config["federation"]["name"] = federation.name
    config |= {"out": str(cell.folder), "resume": True}
    plan = build_plan(cell.folder, config, federation.parts, identity="")
    if plan.clock is not None:
        plan.clock.check([site.name for site in federation.sites])
    Policy.from_config(config["policy"])
    training = sum(site.role == "train" for site in federation.sites)
    turns = max(1, len(folds(config, federation)))
    return PlannedCell(
        cell,
        config,
        checkpoint.fingerprint(config),
        federation,
        data,
        work=float(turns * training * settings.rounds * settings.local_steps),
        folds=turns,
        adapts=method.participation is Participation.BOTH,
    )


def target_for(sweep: Sweep, prepared: Sequence[PlannedCell]) -> str | None:
    """The site whose labels are hidden in all cells, because some cell's method adapts to sites
    without labels and none is named: the last one that trains.

    None where nothing is to be hidden, and of images that are not phantoms: theirs is the user's
    to say.
    """
    if "data.unlabelled_sites" in sweep.fixed.keys() | sweep.axes.keys():
        return None
    first = next((one for one in prepared if one.adapts), None)
    if first is None or first.config["federation"]["kind"] != "phantom":
        return None
    names = [site.name for site in first.federation.sites if site.role == "train"]
    return names[-1] if len(names) > 1 and first.config["protocol"] == "together" else None


def hide_labels(
    sweep: Sweep, prepared: Sequence[PlannedCell], site: str
) -> tuple[Sweep, list[PlannedCell]]:
    """The grid and its cells with the option ``data.unlabelled_sites=[site]``; no configuration is
    composed again, which takes a fifth of a second a cell."""
    hidden = {"unlabelled_sites": [site]}
    federations: Opened = {}
    cells = [
        _checked(
            one.cell,
            {**one.config, "data": {**one.config["data"], **hidden}},
            federations,
            silent,  # It has been told, of the same images.
            set(),
        )
        for one in prepared
    ]
    fixed = {**sweep.fixed, "data.unlabelled_sites": f"[{site}]"}
    return replace(sweep, fixed=fixed), cells


def _check_budgets(sweep: Sweep, prepared: Sequence[PlannedCell]) -> None:
    """Cells are compared at one number of steps, unless it is what is compared."""
    if sweep.axes.keys() & {"rounds", "local_steps"}:
        return
    first: dict[int, PlannedCell] = {}
    for one in prepared:
        if one.config["budget"] == "steps":
            first.setdefault(one.config["rounds"] * one.config["local_steps"], one)
    if len(first) > 1:
        told = " and ".join(f"{one.cell.entrant} {steps}" for steps, one in first.items())
        raise UserError(
            f"the cells would take different numbers of local steps ({told}); set rounds and "
            "local_steps, or another budget"
        )
