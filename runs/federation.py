"""What a config says of its sites and its task: nothing here needs torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedshift.runs.config import Config
from fedshift.runs.settings import TaskSettings
from fedshift.sites import DataSettings, load_federation
from fedshift.sites.types import Federation


def open_federation(config: Config) -> tuple[Federation, DataSettings]:
    """List the sites that ``config`` describes, those left out of this fold as unseen ones."""
    data = DataSettings.from_config(config["data"])
    federation = load_federation(config["federation"], data, config["seed"])
    sites = tuple(
        replace(site, role="unseen") if site.name in config.get("left_out", ()) else site
        for site in federation.sites
    )
    return replace(federation, sites=sites), data


def task_settings(config: Config, structures: tuple[str, ...]) -> dict[str, Any]:
    """What a method is told of the task: the config node, and the federation's structures."""
    task = TaskSettings.from_config(config)
    return {"tolerance_mm": task.tolerance_mm, "structures": list(structures)}
