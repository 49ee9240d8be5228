"""Multi-Krum: Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent, NeurIPS 2017, section 4 and "Multi-Krum".

    w_{t+1} = mean of the m updates with the smallest scores s(k) of Krum

m = 1 is Krum and m = n the mean; the default is n - f, all that are not taken for faulty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedshift import UserError
from fedshift.protocol.messages import Instruction, TensorInfo
from fedshift.protocol.settings import setting
from fedshift.strategies.base import Family
from fedshift.strategies.base.robust import Tolerant
from fedshift.strategies.krum import scores


@dataclass(eq=False)
class MultiKrum(Tolerant):
    """The mean of the updates that lie closest to their neighbours."""

    paper: ClassVar[str] = "Blanchard et al. 2017"
    family: ClassVar[Family | None] = "robust"
    combines: ClassVar[str] = "averaged over the sites closest to their neighbours"
    compares: ClassVar[bool] = True
    per_faulty: ClassVar[int] = 2
    beside: ClassVar[int] = 3

    chosen: int | None = setting(None, at_least=1)
    """m: how many updates are averaged; null: all but ``byzantine``."""

    def begin(
        self, sites: Mapping[str, int], tensors: Mapping[str, TensorInfo], instruction: Instruction
    ) -> None:
        """Bind to a run; raises :class:`UserError` also when faulty sites would be averaged."""
        super().begin(sites, tensors, instruction)
        most = self.drawn() - self.byzantine
        if self.chosen is not None and self.chosen > most:
            raise UserError(
                f"strategy.chosen={self.chosen} of {self.drawn()} sites would average faulty ones "
                f"too: with strategy.byzantine={self.byzantine} it can be {most} at most"
            )

    def choose(self, weights: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """The best m count alike."""
        most = len(weights) - self.byzantine
        order = np.argsort(scores(squared, self.byzantine), kind="stable")
        counts = np.zeros(len(weights))
        counts[order[: most if self.chosen is None else min(self.chosen, most)]] = 1
        return counts
