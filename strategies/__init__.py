"""Aggregation strategies: a module is one (:mod:`fedshift.protocol.registry`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedshift.protocol.registry import Registry

if TYPE_CHECKING:
    from fedshift.strategies.base import Strategy

STRATEGIES: Registry[Strategy] = Registry(
    "strategy", __name__, "fedshift.strategies", "fedshift.strategies.base:Strategy"
)


def build(settings: Mapping[str, Any]) -> Strategy:
    """Build the strategy that ``settings["name"]`` names from the other settings.

    Raises :class:`UserError` for an unknown name or key, with the nearest known ones.
    """
    name = str(settings.get("name", ""))
    if name == "flower" or name[:1].isupper():
        from fedshift.strategies import flower

        # The names of Flower's classes begin with a capital, those of the modules here do not.
        return flower.from_settings({**settings, "name": "FedAvg" if name == "flower" else name})
    return STRATEGIES.build(settings)
