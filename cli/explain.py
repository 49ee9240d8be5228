"""``fedshift explain``: what a strategy does with each tensor of a method, before any run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from fedshift import UserError, strategies
from fedshift.cli.console import PlainConsole
from fedshift.client.model import Model
from fedshift.protocol.messages import POOLED, TensorInfo
from fedshift.protocol.words import count, some
from fedshift.runs.config import load
from fedshift.runs.federation import open_federation
from fedshift.runs.stored import build_plan
from fedshift.server.training import Roster, begin
from fedshift.sites.types import Federation
from fedshift.strategies import STRATEGIES
from fedshift.strategies.base import Strategy

_ROLES = {
    "weight": "weights and biases",
    "norm": "scale and shift of normalising layers",
    "norm_buffer": "running statistics of normalising layers",
}
_SHARED = {
    "averaged": "{combines}, then sent to every site",
    "broadcast": "{combines}, over the sites that train it, sent to every site",
    "balanced": "averaged, each domain counting alike, sent to every site",
    "summed": "gradients added over the domains, one step of Adam, sent to every site",
}


def explain(overrides: Sequence[str], config_dir: Path | None = None) -> None:
    """Print what is averaged and what is kept, what travels, and which strategies are the same.

    Raises :class:`UserError` for what a run would refuse before its first round.
    """
    config = load(overrides, config_dir)
    federation, data = open_federation(config)
    plan = build_plan(Path(), config, federation.parts, identity="")
    strategy = plan.strategies[0]
    training = [site.name for site in federation.sites if site.role == "train"]
    roster = _roster(federation, data.unlabelled_sites)
    task = {**plan.task, "unlabelled": roster.unlabelled}
    model = Model(plan.method, task, torch.device("cpu"), seed=0)
    begin(plan, model.card(config["task"]["name"]), roster, plan.instruction.but(task=task))
    infos = model.infos()
    kept = strategy.kept
    name = config["strategy"]["name"]

    table = Table(title=f"{name} with {config['method']['name']}", title_justify="left")
    for column in ("network", "tensors", "what they are", "parameters", "what happens"):
        table.add_column(column, justify="right" if column in ("tensors", "parameters") else "left")
    groups: dict[tuple[str, str, bool], list[TensorInfo]] = {}
    for tensor, info in infos.items():
        groups.setdefault((info.network, info.role, tensor in kept), []).append(info)
    for (network, role, stays), members in groups.items():
        table.add_row(
            network,
            str(len(members)),
            _ROLES[role],
            f"{sum(_size(info) for info in members):,}",
            "kept at the site"
            if stays
            else _SHARED[members[0].sharing].format(combines=strategy.combines),
        )
    console = PlainConsole()
    console.print(table)
    sent = sum(
        _size(info) * np.dtype(info.dtype).itemsize
        for tensor, info in infos.items()
        if tensor not in kept
    )
    down, up = (sent * models / 1e6 for models in strategy.cost)
    console.print(
        f"{count(len(training), 'site')} train{'s' if len(training) == 1 else ''} "
        f"({some(training, most=8)}); a round moves {down:.2f} MB to each selected "
        f"site and {up:.2f} MB back.",
    )
    if taught := _teaching(federation, data.unlabelled_sites):
        console.print(taught)
    for rule, settings in strategy.rules().items():
        told = ", ".join(f"{key}={value}" for key, value in settings.items())
        told = f" ({told})" if told else ""
        console.print(f"In their training sites follow the rule {rule}{told}.")
    console.warn(same_as(strategy, name, infos, len(training)))


def _roster(federation: Federation, hidden: Collection[str]) -> Roster:
    """The sites as a run would find them, as far as the table of the images tells; the labels of
    the sites ``hidden`` are left out."""
    training = sorted(
        (site for site in federation.sites if site.role == "train"), key=attrgetter("name")
    )
    teaching = [
        site
        for site in training
        if site.name not in hidden and any(image.labelled or image.phantom for image in site.images)
    ]
    names = [site.name for site in federation.sites]
    return Roster(
        nodes={name: number for number, name in enumerate([*names, POOLED])},
        labelled=[site.name for site in teaching],
        unlabelled=[site.name for site in training if site not in teaching],
        partial=[
            site.name
            for site in teaching
            if any(image.annotates is not None for image in site.images)
        ],
        scored=names,
    )


def _teaching(federation: Federation, unlabelled: Collection[str]) -> Table | None:
    """Who teaches what, where some label does not tell of every structure; the labels of the sites
    ``unlabelled`` are hidden."""
    partly = [
        image for site in federation.sites for image in site.images if image.annotates is not None
    ]
    if not partly:
        return None
    table = Table(title="who teaches what (labelled images)", title_justify="left")
    table.add_column("site")
    for name in federation.parts:
        table.add_column(Text(name), justify="right")
    for site in federation.sites:
        labelled = [image for image in site.images if image.labelled or image.phantom]
        counts = [
            sum(image.annotates is None or name in image.annotates for image in labelled)
            for name in federation.parts
        ]
        scored = site.role == "unseen" or site.name in unlabelled
        name = f"{site.name} (scored only)" if scored else site.name
        table.add_row(Text(name), *(str(count or "-") for count in counts))
    return table


def same_as(
    strategy: Strategy, name: str, infos: Mapping[str, TensorInfo], sites: int
) -> list[str]:
    """Sentences about strategies that would do the very same here."""
    sentences = []
    if sites == 1 and strategy.model == "federated":
        sentences.append(f"with one training site {name} is local training.")
    mine = (strategy.keeps(infos), strategy.rules(), strategy.model, strategy.combines)
    for other_name in STRATEGIES.usable()[0]:
        # silobn is fedavg on most networks: that is worth a warning to who asked for silobn only.
        if other_name in (name, "pooled", "flower", "silobn"):
            continue
        try:
            other = strategies.build({"name": other_name})
            theirs = (other.keeps(infos), other.rules(), other.model, other.combines)
        except UserError:  # It has a setting without a default, or does not go with this method.
            continue
        if theirs != mine:
            continue
        why = ""
        if "fedbn" in (name, other_name):
            why = ": the networks have no normalising layer with tensors of its own"
        elif name == "silobn":
            why = ": the normalising layers have no running statistics"
        elif "fedprox" in (name, other_name):
            why = ": the proximal weight is 0"
        sentences.append(f"{name} would be the same as {other_name}{why}.")
    return sentences


def _size(info: TensorInfo) -> int:
    return int(np.prod(info.shape))
