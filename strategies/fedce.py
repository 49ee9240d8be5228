"""FedCE: Jiang et al., Fair Federated Medical Image Segmentation via Client Contribution
Estimation, CVPR 2023.

Sites count by what they contribute, estimated in two spaces. With the changes D_k = w_{t+1}^k - w_t
of a round and the shares p_k:

    gradient space   g_k = 1 - cos(D_k, sum_{j != k} p_j D_j)
    data space       e_k = F_k((w_t - p_k w_t^k) / (1 - p_k))
    c_k = g_k e_k   (form: product)    or    c_k = g_k / sum g + e_k / sum e   (form: sum)
    p_k <- m p_k + (1 - m) c_k / sum c

g_k is large where a site pulls another way than the rest, e_k where the model of the others alone
does badly on its images. The new shares already weigh the round's own updates.

That model is computed at the site, from the one it received, its own last update, which it keeps,
and p_k (``fedshift.client.rules.leave_one_out``): nothing else travels, while a site that is told
p_k can compute the mean of the others. F_k is the mean training loss. D_k is taken over all that
training moves, with 0 where a site did not train a sub-network; a cosine with a change of no length
counts as 0. Shares start alike. In the sum each space is divided by its total first, for the loss
is on another scale than the cosine.

A site that was not in the last average (not drawn, failed, rejected, or new, as all are in the
first round) had no share in it: the model without it is the model, and e_k its loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from fedshift.protocol.settings import setting
from fedshift.strategies.base.shares import SharedUpdates, Shares

_ROUND = "averaged in round"
_PART = "part in "


@dataclass(eq=False)
class FedCE(Shares):
    """Shares follow what a site contributes."""

    paper: ClassVar[str] = "Jiang et al. 2023"
    combines: ClassVar[str] = "averaged by the sites' contributions"
    stays: ClassVar[str] = "its last update"
    told: ClassVar[tuple[str, ...]] = ("risk_without",)

    form: Literal["product", "sum"] = "product"
    """How the contributions in the two spaces are put together."""
    momentum: float = setting(0.5, at_least=0, at_most=1)
    """m: how much of its share a site keeps."""

    def rules(self) -> dict[str, dict[str, Any]]:
        """The measurement, and what it needs to know of the last average."""
        state = getattr(self, "state", {})
        parts = {
            name.removeprefix(_PART): {
                site: float(part) for site, part in zip(self.sites, parts, strict=True) if part > 0
            }
            for name, parts in state.items()
            if name.startswith(_PART)
        }
        last = int(state.get(_ROUND, 0))
        return {"leave_one_out": {"slices": self.slices, "round": last, "parts": parts}}

    def moved(self, shares: np.ndarray, updates: SharedUpdates) -> np.ndarray:
        """By the contributions."""
        told = [self.outcome.sites[site] for site in updates.sites]
        directions = 1 - cosines(self._products(updates), shares)
        errors = np.array([found["risk_without"] for found in told])
        for found, direction in zip(told, directions, strict=True):
            found["direction"] = float(direction)
        if self.form == "product":
            contributions = directions * errors
        else:
            contributions = _parts(directions) + _parts(errors)
        return self.momentum * _parts(shares) + (1 - self.momentum) * _parts(contributions)

    def settle(self, updates: SharedUpdates) -> None:
        """Also note who had what part in which sub-network."""
        super().settle(updates)
        self.state = {n: array for n, array in self.state.items() if not n.startswith(_PART)}
        self.state[_ROUND] = np.asarray(self.round)
        for network in sorted({self.tensors[name].network for name in self.steered}):
            if network in updates.trained:
                found = dict(zip(updates.trained[network], updates.counts(network), strict=True))
                parts = np.array([found.get(site, 0.0) for site in self.sites])
                self.state[_PART + network] = parts

    def _products(self, updates: SharedUpdates) -> np.ndarray:
        """The scalar products of the sites' changes of the whole model, (n, n)."""
        total = np.zeros((len(updates.sites), len(updates.sites)))
        for network, sites in updates.trained.items():
            rows = [updates.sites.index(site) for site in sites]
            total[np.ix_(rows, rows)] += updates.products(network)
        return total


def cosines(products: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The cosine of each of n changes with the mean of the others by ``shares`` (n,), from all
    scalar ``products`` (n, n); 0 where one of them has no length."""
    found = np.zeros(len(shares))
    for k in range(len(shares)):
        others = np.where(np.arange(len(shares)) == k, 0.0, shares)
        square = products[k, k] * (others @ products @ others)
        if square > 0:
            found[k] = np.clip(products[k] @ others / np.sqrt(square), -1, 1)
    return found


def _parts(values: np.ndarray) -> np.ndarray:
    """``values`` (n,), at least 0, divided by their sum; alike where that is 0."""
    total = values.sum()
    return values / total if total > 0 else np.full(len(values), 1 / len(values))
