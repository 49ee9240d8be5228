"""Aggregation strategies, one module an algorithm, by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedshift import UserError
from fedshift.protocol.settings import from_mapping, suggest

if TYPE_CHECKING:
    from fedshift.strategies.base import Strategy

STRATEGIES = {
    "afl": "AFL",
    "apfl": "APFL",
    "bulyan": "Bulyan",
    "cyclic": "Cyclic",
    "ditto": "Ditto",
    "fedadagrad": "FedAdagrad",
    "fedadam": "FedAdam",
    "fedavg": "FedAvg",
    "fedavgm": "FedAvgM",
    "fedbn": "FedBN",
    "fedbuff": "FedBuff",
    "fedce": "FedCE",
    "feddg": "FedDG",
    "feddg_ga": "FedDGGA",
    "feddyn": "FedDyn",
    "fednova": "FedNova",
    "fedper": "FedPer",
    "fedprox": "FedProx",
    "fedrep": "FedRep",
    "fedsam": "FedSAM",
    "fedyogi": "FedYogi",
    "fine_tuning": "FineTuning",
    "flower": "Flower",
    "geometric_median": "GeometricMedian",
    "harmofl": "HarmoFL",
    "krum": "Krum",
    "local": "Local",
    "median": "Median",
    "moon": "Moon",
    "multi_krum": "MultiKrum",
    "norm_clipping": "NormClipping",
    "pooled": "Pooled",
    "qfedavg": "QFedAvg",
    "scaffold": "Scaffold",
    "silobn": "SiloBN",
    "swarm": "Swarm",
    "trimmed_mean": "TrimmedMean",
}
"""Module of this package -> the strategy's class in it."""


def build(settings: Mapping[str, Any]) -> Strategy:
    """Build the strategy that ``settings["name"]`` names from the other settings.

    Raises :class:`UserError` for an unknown name or key, with the nearest known ones.
    """
    values = dict(settings)
    name = str(values.pop("name", ""))
    if name == "flower" or name[:1].isupper():
        from fedshift.strategies import flower

        # The names of Flower's classes begin with a capital, those of the modules here do not.
        return flower.from_settings({**values, "name": "FedAvg" if name == "flower" else name})
    if name not in STRATEGIES:
        raise UserError(f"strategy={name} is not known{suggest(name, STRATEGIES)}")
    return from_mapping(named(name), values, "strategy")


def named(name: str) -> type[Strategy]:
    """The class of the strategy called ``name``, one of :data:`STRATEGIES`."""
    strategy: type[Strategy] = getattr(
        importlib.import_module(f"{__name__}.{name}"), STRATEGIES[name]
    )
    return strategy
