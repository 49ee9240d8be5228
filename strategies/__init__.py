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
    "fedavg": "FedAvg",
    "fedbn": "FedBN",
    "fedprox": "FedProx",
    "local": "Local",
    "pooled": "Pooled",
}
"""Module of this package -> the strategy's class in it."""


def build(settings: Mapping[str, Any]) -> Strategy:
    """Build the strategy that ``settings["name"]`` names from the other settings.

    Raises :class:`UserError` for an unknown name or key, with the nearest known ones.
    """
    values = dict(settings)
    name = str(values.pop("name", ""))
    if name not in STRATEGIES:
        raise UserError(f"strategy={name} is not known{suggest(name, STRATEGIES)}")
    module = importlib.import_module(f"{__name__}.{name}")
    strategy: type[Strategy] = getattr(module, STRATEGIES[name])
    return from_mapping(strategy, values, "strategy")
