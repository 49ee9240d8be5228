"""What the strategies that look at the sites' losses have in common.

Each site that trains reports its risk: the mean loss, soft Dice + cross-entropy, of the model it
was sent, on its labelled training slices (``fedshift.client.rules.risk``). So a site without labels
cannot take part, which is refused before training, and an update without its risks is rejected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fedshift import UserError
from fedshift.protocol.answers import Unfit
from fedshift.protocol.messages import Instruction, TensorInfo
from fedshift.protocol.settings import setting
from fedshift.strategies.base import Strategy
from fedshift.strategies.base.aggregate import Update

_MOST = 100.0
"""No risk is larger: a cross-entropy of probabilities in single precision is at most 88."""


@dataclass(eq=False)
class ByRisk(Strategy):
    """A strategy to which every site that trains tells its risk."""

    told: ClassVar[tuple[str, ...]] = ("risk_received",)
    """The risks without which an update is not used."""

    slices: int | None = setting(None, at_least=1)
    """On how many drawn training slices, at most, a site measures its risk; null: on all."""

    def rules(self) -> dict[str, dict[str, Any]]:
        """The measurement."""
        return {"risk": {"slices": self.slices, "trained": "risk_trained" in self.told}}

    def begin(
        self, sites: Mapping[str, int], tensors: Mapping[str, TensorInfo], instruction: Instruction
    ) -> None:
        """Bind to a run; raises :class:`UserError` also when a site that trains has no labels."""
        unlabelled = sorted(sites.keys() & set(instruction.task.get("unlabelled", ())))
        if unlabelled:
            raise UserError(
                f"strategy={self.name} weighs sites by their loss on labelled images and "
                f"{unlabelled[0]} has none; choose another strategy, or a method that trains at "
                "labelled sites only"
            )
        super().begin(sites, tensors, instruction)

    def check(self, update: Update) -> None:
        """Refuse what comes without the risks it needs."""
        super().check(update)
        for name in self.told if update.weights else ():
            if not 0 <= update.metrics.get(name, math.nan) <= _MOST:
                raise Unfit(f"sent no {name} between 0 and {_MOST:g}, by which it would count")

    def weighed(self, update: Update, factor: float) -> Update:
        """``update`` with the weight of its averaged and broadcast sub-networks times ``factor``;
        without these when that is 0."""
        balanced = {info.network for info in self.tensors.values() if info.domains}
        weights = {
            network: weight if network in balanced else weight * factor
            for network, weight in update.weights.items()
        }
        if factor > 0:
            return replace(update, weights=weights)
        left = {name: array for name, array in update.arrays.items() if self.tensors[name].domains}
        return replace(update, arrays=left)
