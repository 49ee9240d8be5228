"""Aggregation strategies, one module an algorithm, by name."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedshift import UserError

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
    arguments = dict(settings)
    name = str(arguments.pop("name", ""))
    if name not in STRATEGIES:
        nearest = difflib.get_close_matches(name, STRATEGIES) or sorted(STRATEGIES)
        raise UserError(f"strategy '{name}' is unknown; did you mean {' or '.join(nearest)}?")
    module = importlib.import_module(f"{__name__}.{name}")
    strategy = getattr(module, STRATEGIES[name])
    known = {
        parameter
        for base in strategy.__mro__
        if "__init__" in vars(base)
        for parameter in inspect.signature(base.__init__).parameters
    } - {"self", "settings", "args", "kwargs"}
    for key in arguments:
        if key not in known:
            raise UserError(f"strategy.{key} is unknown to {name}; it takes {sorted(known)}")
    built: Strategy = strategy(**arguments)
    return built
