"""FedDG-GA: Zhang et al., Federated Domain Generalization with Generalization Adjustment, CVPR
2023.

A model generalises to unseen domains if its generalisation gap is alike on all seen ones. The gap
of site k is by how much the model of all does worse there than the site's own did before it was
averaged, F_k the mean training loss:

    G_k = F_k(w_t) - F_k(w_t^k)        w_t = sum_k a_k w_t^k

and the shares move to the sites with the larger gap, before the next round's average, by steps that
fall linearly over the R rounds of the run:

    a_k <- a_k + d_t (G_k - mean G) / max_j |G_j - mean G|        d_t = (1 - t / R) d
    then cut to [0, 1] and divided by their sum

The deviations are divided by the largest one in absolute value, so that no share moves further than
d_t. d is given as a part of the equal share 1 / p, so that it means the same for any number p of
sites.

F_k(w_t^k) is measured at the end of the local training and kept by the coordinator; F_k(w_t) when
the site is sent the model again. Sites that were not drawn, or failed, meanwhile are compared with
their own last model. Those heard for the first time have no gap and do not move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedshift.protocol.messages import Instruction, TensorInfo
from fedshift.protocol.settings import setting
from fedshift.strategies.base import Family
from fedshift.strategies.base.shares import SharedUpdates, Shares

_OWN = "risk of the own model"


@dataclass(eq=False)
class FedDGGA(Shares):
    """Shares move to the sites whose own model loses most when it is averaged."""

    paper: ClassVar[str] = "Zhang R. et al. 2023"
    family: ClassVar[Family | None] = "harmonise"
    combines: ClassVar[str] = "averaged by shares that rise with a site's generalisation gap"
    told: ClassVar[tuple[str, ...]] = ("risk_received", "risk_trained")
    gaps: ClassVar[tuple[str, ...]] = (_OWN,)

    step_size: float = setting(0.2, at_least=0, at_most=1)
    """d: how far the most deviant site's share moves in the first step, as a part of 1 / p."""

    def bound_to_rounds(self) -> str:
        """The step."""
        return "lets its steps fall over the run's rounds"

    def begin(
        self, sites: Mapping[str, int], tensors: Mapping[str, TensorInfo], instruction: Instruction
    ) -> None:
        """Bind to a run; no site has a model of its own yet."""
        super().begin(sites, tensors, instruction)
        self.state[_OWN] = np.full(len(sites), np.nan)

    def moved(self, shares: np.ndarray, updates: SharedUpdates) -> np.ndarray:
        """By the gaps."""
        rows = [self.place(site) for site in updates.sites]
        told = [self.outcome.sites[site] for site in updates.sites]
        gaps = np.array([found["risk_received"] for found in told]) - self.state[_OWN][rows]
        own = self.state[_OWN].copy()
        own[rows] = [found["risk_trained"] for found in told]
        self.state[_OWN] = own
        known = np.isfinite(gaps)
        for found, gap in zip(told, gaps, strict=True):
            if np.isfinite(gap):
                found["gap"] = float(gap)
        if not known.any():
            return shares
        deviations = np.where(known, gaps - gaps[known].mean(), 0.0)
        largest = np.abs(deviations).max()
        if largest == 0:
            return shares
        # The gap is that of the model of the round before.
        left = 1 - (self.round - 1) / self.instruction.rounds
        step = left * self.step_size / len(self.sites)
        return np.clip(shares + step * deviations / largest, 0.0, 1.0)
