"""Score a finished run's models again, also on other data."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedshift import UserError
from fedshift.client.policy import Policy
from fedshift.client.simulation import LocalSites
from fedshift.protocol.storage import folder_name, write_yaml
from fedshift.runs.checking import settle
from fedshift.runs.config import Config, load, outside
from fedshift.runs.engine import inline_grid
from fedshift.runs.federation import data_settings, open_federation
from fedshift.runs.plugins import own_settings
from fedshift.runs.settings import EngineSettings
from fedshift.runs.stored import StoredRun, stored_run
from fedshift.runs.watching import Tell, Watch, silent, unwatched
from fedshift.server.cross_site import score
from fedshift.server.federation import Sites, find
from fedshift.server.tables.files import write_cases, write_cross_site
from fedshift.server.tables.summary import summarise
from fedshift.sites import DataSettings, load_federation
from fedshift.sites.types import Federation


def evaluate(
    run: Path,
    overrides: Sequence[str],
    manifest: Path | None,
    name: str | None,
    config_dir: Path | None = None,
    tell: Tell = silent,
    watch: Watch = unwatched,
    *,
    trusted: bool = False,
) -> Path:
    """Write ``cases.csv`` and ``cross_site.csv`` to ``RUN/evaluations/NAME/``, which is returned.

    With ``manifest`` every image of that table is scored; without, the run's own test split. A
    run's folder may be somebody else's: what its config names outside of it is opened only where
    the run is ``trusted``. Raises :class:`UserError` when it is needed and not trusted, when the
    run is not finished, or when the data label nothing that it learnt.
    """
    if name is not None and name != folder_name(name):
        raise UserError(
            f"--name {name!r} is no name of one folder; use letters, digits, dots and dashes"
        )
    with stored_run(run) as stored:
        if not trusted:
            _check_inside(run, stored.config, manifest)
        seed = stored.config["seed"]
        federation, data, config = _data(stored, overrides, manifest, config_dir, tell)
        engine = EngineSettings.from_config(stored.config)
        folder = run / "evaluations" / (federation.name if name is None else name)
        rules = {name for ref in stored.models for name in ref.rules}
        with tempfile.TemporaryDirectory() as scratch:
            sites = LocalSites(
                federation=federation,
                data=data,
                policy=Policy.from_config(stored.config["policy"]),
                folder=Path(scratch),
                seed=seed,
                own=own_settings(stored.config),
                amp=engine.amp,
            )
            with (
                inline_grid(sites, engine, stored.instruction, rules) as grid,
                watch(f"evaluating {run}") as watcher,
            ):
                reached = Sites(grid, find(grid, stored.instruction)[0], {})
                watcher.expect(len(stored.models) * len(reached.scored))
                scores = score(
                    reached, stored.instruction, stored.task, stored.models, ["test"], watcher
                )
        if not scores.cases:
            why = scores.problems[0] if scores.problems else "no image has a label"
            raise UserError(f"nothing could be scored: {why}")
        node = {**stored.config, "data": config, "out": str(folder)}
        write_yaml(folder / "config.yaml", node)
        write_cases(folder / "cases.csv", scores.cases, stored.task)
        summary = summarise(scores.cases, stored.task, seed, scores.wholes)
        write_cross_site(folder / "cross_site.csv", summary, stored.task)
    return folder


def _check_inside(run: Path, config: Config, manifest: Path | None) -> None:
    """Raise :class:`UserError` where scoring the run of ``config`` opens what it names outside."""
    for (group, key), path in outside(config).items():
        if path is None or (group == "data" and manifest is not None):
            continue
        other = ", or score other images with --manifest" if group == "data" else ""
        raise UserError(
            f"{run / 'config.yaml'} names what lies outside of that folder ({group}.{key}={path}): "
            f"add --trusted if the run is your own{other}"
        )


_TABLE = {"name": "manifest", "kind": "manifest"}
_GEOMETRY = (
    "spacing_mm",
    "default_spacing_mm",
    "size",
    "slice_axis",
    "normalise",
    "normalise_pair",
    "window",
)
"""Keys of ``data`` that the networks were trained with: other images are prepared alike."""


def _data(
    stored: StoredRun,
    overrides: Sequence[str],
    manifest: Path | None,
    config_dir: Path | None,
    tell: Tell,
) -> tuple[Federation, DataSettings, Config]:
    """The data to score on: the run's own, or another table's, prepared as the run's was."""
    trained = stored.config["data"]
    if manifest is None:
        if overrides:
            raise UserError(f"'{overrides[0]}' changes other data: give its table with --manifest")
        return *open_federation(stored.config), trained
    given = {override.partition("=")[0].removeprefix("data.") for override in overrides}
    config = load(["federation=manifest", *overrides], config_dir)["data"]
    card = stored.cards[0]
    prepared = {**trained, "size": card.size[0]}
    if stored.config["federation"]["kind"] == "phantom":
        prepared["spacing_mm"] = card.spacing_mm[0][1]
    # Older runs know fewer keys; what they lack is as it was then.
    config |= {key: prepared.get(key) for key in _GEOMETRY if key not in given}
    config["manifest"] = str(manifest)
    config = settle({**stored.config, "federation": _TABLE, "data": config}, tell)["data"]
    data = data_settings({**stored.config, "data": config})
    federation = load_federation(_TABLE, data, seed=0)
    # Nothing is trained here: every image is there to be scored.
    unseen = tuple(replace(site, role="unseen") for site in federation.sites)
    return replace(federation, sites=unseen), data, config
