"""Example slices of each site, drawn on the machine that holds the images."""

from __future__ import annotations

from pathlib import Path

import torch

from fedshift.cli.runs import stored_run
from fedshift.client.examples import draw_site
from fedshift.client.simulation import LocalSites
from fedshift.protocol.messages import Arrays
from fedshift.server.cross_site import ModelRef, NoModel

MOST_SITES = 12
"""Pictures of more sites than this tell nobody anything."""


def draw(out: Path, sites: LocalSites) -> None:
    """Draw ``figures/examples_<site>.png`` for the first sites of a finished run."""
    with stored_run(out) as run:
        refs = {(ref.model, ref.trained_on): ref for ref in run.models}
        common = _load(refs.get(("global", "all")) or refs.get(("pooled", "all")))
        for site in sites.federation.sites[:MOST_SITES]:
            models = _load(refs.get(("local", site.name))) | _load(
                refs.get(("personal", site.name))
            )
            models |= common
            draw_site(
                sites.open(site.name),
                models,
                run.instruction.method,
                run.instruction.task,
                torch.device("cpu"),
                out / "figures" / f"examples_{site.name}.png",
            )


def _load(ref: ModelRef | None) -> dict[str, Arrays]:
    try:
        return {ref.model: ref.load()} if ref else {}
    except NoModel:
        return {}
