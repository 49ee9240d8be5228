"""The families of methods that the advice names: what belongs to them, and what to try first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedshift import strategies
from fedshift.server.advice.rules import Advice, Family
from fedshift.strategies.robust import Tolerant

STRATEGIES: dict[str, Family] = {
    "fedbn": "harmonise",
    "silobn": "harmonise",
    "harmofl": "harmonise",
    "feddg": "harmonise",
    "feddg_ga": "harmonise",
    "fine_tuning": "personalise",
    "ditto": "personalise",
    "fedper": "personalise",
    "fedrep": "personalise",
    "apfl": "personalise",
    "median": "robust",
    "trimmed_mean": "robust",
    "geometric_median": "robust",
    "multi_krum": "robust",
    "krum": "robust",
    "bulyan": "robust",
    "norm_clipping": "robust",
}
"""Strategy -> its family, the plainest of each first. FedBN and SiloBN keep normalising layers at
the sites, which is where images differ in contrast; what else a site keeps is personal. Strategies
that are not listed (optimisers, client drift, fairness, rhythm) answer other questions."""

PLAIN_METHOD = "supervised"
"""The one method that does nothing about a shift; every other adapts between sites."""

AUGMENTATIONS = ("intensity", "noise", "fbp", "gamma", "windowing")
"""The settings of ``method.augmentation`` that change an image's appearance when above 0."""

SITE_BOUND = frozenset({"fedbn", "silobn"})
"""Of the harmonising strategies those that keep something at the sites, and so are of no use to a
site that never trains."""


def families_of(config: Mapping[str, Any]) -> frozenset[Family]:
    """What a run's configuration does about a shift or a fault; ``nothing`` is plain FedAvg, and
    empty what these rules do not know."""
    strategy, method = config["strategy"]["name"], config["method"]
    augmentation = method.get("augmentation") or {}
    found: set[Family] = {STRATEGIES[strategy]} if strategy in STRATEGIES else set()
    if method["name"] != PLAIN_METHOD or any(augmentation.get(key) for key in AUGMENTATIONS):
        found.add("harmonise")
    if not found and strategy == "fedavg":
        found.add("nothing")
    return frozenset(found)


def options(family: Family, advice: Advice) -> dict[str, list[str]]:
    """What to set on the command line for ``family``: the values worth trying, by option, the
    plainest first. Left out is what the federation of ``advice`` is too small for."""
    named = [name for name, of in STRATEGIES.items() if of == family and _suits(name, advice)]
    found = {"strategy": named}
    if family == "harmonise":
        found |= {"augmentation": ["intensity"], "method": ["style_transfer"]}
    return found


def _suits(name: str, advice: Advice) -> bool:
    """Whether the strategy is of use to unseen sites, and holds against the suspects."""
    if name in SITE_BOUND:
        return not advice.unseen
    strategy = strategies.named(name)
    if issubclass(strategy, Tolerant):
        return strategy(byzantine=max(1, len(advice.suspects))).needed() <= advice.training
    return True
