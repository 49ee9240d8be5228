"""Pictures of a finished run, drawn on the machine that holds the images: example slices of each
site, and what the method itself shows of its work."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedshift import derive_seed
from fedshift.client.contract.method import Scene, of_method
from fedshift.client.examples import Finished, draw_site
from fedshift.client.illustrations import draw as draw_illustration
from fedshift.client.model import shared_model
from fedshift.client.simulation import LocalSites
from fedshift.client.tasks import TASKS
from fedshift.protocol.messages import Arrays
from fedshift.protocol.storage import write_atomic
from fedshift.runs.stored import stored_run
from fedshift.server.cross_site import ModelRef, NoModel
from fedshift.sites.types import SiteData

log = logging.getLogger(__name__)

MOST_SITES = 12
"""Pictures of more sites than this tell nobody anything."""


def draw(out: Path, sites: LocalSites) -> None:
    """Draw ``figures/examples_<site>.png`` and the method's own pictures for the first sites of a
    finished run.

    The latter are ``figures/method_<site>-<name>.png``, listed in ``figures/method.json`` with
    their titles and captions; there is no list when the method shows nothing. What cannot be drawn
    is told in ``figures/undrawn.json``: a run that is trained and scored does not end there.
    """
    figures = out / "figures"
    shown: list[dict[str, str]] = []
    undrawn: list[str] = []

    @contextmanager
    def noted(what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            log.exception("%s cannot be drawn", what)
            undrawn.append(f"{what}: {type(error).__name__}: {error}")

    with stored_run(out) as run:
        refs = {(ref.model, ref.trained_on): ref for ref in run.models}
        common = refs.get(("global", "all")) or refs.get(("pooled", "all"))
        method = {**run.instruction.method, **sites.own}
        seed = derive_seed(run.instruction.seed, "prediction")
        task = TASKS.build(run.instruction.task)
        for site in sites.federation.sites[:MOST_SITES]:
            local, personal = refs.get(("local", site.name)), refs.get(("personal", site.name))
            data = sites.open(site.name)
            models = {}
            for ref in (local, personal, common):
                if ref and (arrays := _load(ref)) is not None:
                    scene = Scene(task, site.name, torch.device("cpu"), seed, ref.bank)
                    models[ref.model] = Finished(arrays, scene, ref.rules)
            with noted(f"examples at {site.name}"):
                draw_site(
                    data,
                    models,
                    method,
                    run.instruction.task,
                    figures / f"examples_{site.name}.png",
                )
            for ref in (personal, common, local):
                if ref and ref.model in models:
                    with noted(f"the method at {site.name}"):
                        shown += _draw_method(
                            data, models[ref.model], method, run.instruction.task, figures
                        )
                    break
    if shown:
        write_atomic(figures / "method.json", json.dumps(shown, indent=1) + "\n")
    (figures / "undrawn.json").unlink(missing_ok=True)
    if undrawn:
        write_atomic(figures / "undrawn.json", json.dumps(undrawn, indent=1) + "\n")


def _draw_method(
    data: SiteData,
    finished: Finished,
    method: Mapping[str, Any],
    task: Mapping[str, Any],
    figures: Path,
) -> list[dict[str, str]]:
    """Draw what the method shows with a ``finished`` model at one site; return what the report
    needs to know."""
    scene = replace(finished.scene, bank=of_method(finished.scene.bank))
    model = shared_model(method, task, scene.device)
    model.load(finished.arrays)
    shown = []
    for picture in model.method.illustrate(data, model.nets, scene):
        name = f"method_{data.name}-{picture.name}.png"
        draw_illustration(picture, figures / name)
        texts = {"title": picture.title, "caption": picture.caption}
        shown.append({"site": data.name, "file": name, **texts})
    return shown


def _load(ref: ModelRef) -> Arrays | None:
    try:
        return ref.load()
    except NoModel:
        return None
