"""What a config says of its sites and its task: nothing here needs torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedshift.client.tasks import TASKS
from fedshift.runs.config import Config
from fedshift.sites import DataSettings, load_federation
from fedshift.sites.types import Federation


def open_federation(config: Config) -> tuple[Federation, DataSettings]:
    """List the sites that ``config`` describes, those left out of this fold as unseen ones."""
    data = data_settings(config)
    federation = load_federation(config["federation"], data, config["seed"])
    sites = tuple(
        replace(site, role="unseen") if site.name in config.get("left_out", ()) else site
        for site in federation.sites
    )
    return replace(federation, sites=sites), data


def data_settings(config: Config) -> DataSettings:
    """The settings of ``data``, for the form of label that the task learns from.

    Raises :class:`fedshift.UserError` for an unknown task, and for an unknown or unusable setting.
    """
    task = TASKS.named(str(config["task"].get("name", "")))
    return DataSettings.from_config(config["data"], task.form)


def task_settings(config: Config, parts: tuple[str, ...]) -> dict[str, Any]:
    """What a method is told of the task: the config node, and the federation's ``parts``.

    Raises :class:`fedshift.UserError` for an unknown task or setting."""
    task = {**config["task"], "parts": list(parts)}
    TASKS.build(task)
    return task
