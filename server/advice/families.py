"""The families of methods that the advice names: what belongs to them, and what to try first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedshift import UserError
from fedshift.protocol.needs import PIXEL_CLASSES
from fedshift.server.advice.rules import Advice
from fedshift.strategies import STRATEGIES, build
from fedshift.strategies.base import Family
from fedshift.strategies.base.robust import Tolerant

AUGMENTATIONS = ("intensity", "noise", "fbp", "gamma", "windowing")
"""The settings of ``augmentation`` that change an image's appearance when above 0."""


def families_of(config: Mapping[str, Any], adapts: bool) -> frozenset[Family]:
    """What a run's configuration, whose method ``adapts`` or not, does about a shift or a fault;
    ``nothing`` is plain FedAvg, and empty what these rules do not know."""
    name, method = config["strategy"]["name"], config["method"]
    augmentation = config.get("augmentation") or method.get("augmentation") or {}
    known, _ = STRATEGIES.usable()
    own = known[name].family if name in known else None
    found: set[Family] = {own} if own else set()
    if adapts or any(augmentation.get(key) for key in AUGMENTATIONS):
        found = {*found, "harmonise"} - {"nothing"}
    return frozenset(found)


def options(family: Family, advice: Advice) -> dict[str, list[str]]:
    """What to set on the command line for ``family``: the values worth trying, by option, the
    plainest first. Left out is what the federation of ``advice`` is too small for, what the run's
    method and task do not serve, and a strategy that a name alone does not set."""
    known, _ = STRATEGIES.usable()
    named = [name for name, one in known.items() if one.family == family and _suits(name, advice)]
    found = {"strategy": sorted(named, key=lambda name: (not known[name].plain, name))}
    if family == "harmonise":
        if advice.method is None or advice.method.augments:
            found["augmentation"] = ["intensity"]
        if advice.method is None or PIXEL_CLASSES in advice.method.offers:
            found["method"] = ["style_transfer"]
    return found


def _suits(name: str, advice: Advice) -> bool:
    """Whether the strategy's other settings have defaults, method and task offer what it needs and
    have the tensors that it leaves at the sites, and it is of use to unseen sites and holds against
    the suspects."""
    try:
        strategy = build({"name": name})
        if advice.method is not None:
            if not strategy.needs() <= {*advice.method.offers}:
                return False
            strategy.keeps(advice.method.tensors)
    except UserError:
        return False
    if strategy.site_bound:
        return not advice.unseen
    if isinstance(strategy, Tolerant):
        tolerant = replace(strategy, byzantine=max(1, len(advice.suspects)))
        return tolerant.needed() <= advice.training
    return True
