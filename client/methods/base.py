"""The contract of a method: a paper's algorithm as local training at a site.

A method never sees the network, the coordinator or another site. It is given its site's data, its
named sub-networks with the federation's current weights, what other sites published (the bank),
and a budget; it trains in place and reports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import torch
from torch import nn

from fedshift.client.tasks import Segmentation
from fedshift.sites.types import SiteData

Networks = dict[str, nn.Module]
StatisticsBank = Mapping[str, Mapping[str, np.ndarray]]
"""What the sites published last: site name -> statistic's name -> array. Never an image."""


class Sharing(Enum):
    """What happens to a sub-network's tensors between sites."""

    AVERAGED = "averaged"
    """Every site that trained it sends it; the strategy combines them. What one site alone
    trains is thereby broadcast to the others."""
    KEPT = "kept"
    """It never leaves its site."""


@dataclass(frozen=True)
class Budget:
    """How much local training one round allows, and the run's seed for this site and round."""

    steps: int
    seed: int
    device: torch.device
    amp: bool = False
    """Mixed precision; only ever true on a CUDA device."""
    penalty: Callable[[Mapping[str, nn.Module]], torch.Tensor] | None = None
    """The strategy's local term, added to the training loss at every step (FedProx's proximal
    term); it is given the networks and returns a scalar."""


@dataclass
class FitReport:
    """What local training reports: which sub-networks it trained, on how many examples, and
    scalar metrics (averages over the steps)."""

    trained: frozenset[str]
    examples: int
    metrics: dict[str, float] = field(default_factory=dict)


class Method(ABC):
    """A paper's algorithm as local training; one subclass a paper."""

    tasks: frozenset[type] = frozenset()

    @abstractmethod
    def networks(self, task: Segmentation) -> Networks:
        """Build the named sub-networks on the CPU. Initialisation draws from torch's default
        generator, which the caller has seeded."""

    @abstractmethod
    def sharing(self) -> dict[str, Sharing]:
        """Say for each sub-network how its tensors travel."""

    @abstractmethod
    def fit(
        self, site: SiteData, nets: Networks, bank: StatisticsBank, budget: Budget
    ) -> FitReport:
        """Train ``nets`` in place on the site's training split."""

    @abstractmethod
    def predict(
        self, nets: Networks, images: Sequence[np.ndarray] | np.ndarray, device: torch.device
    ) -> np.ndarray:
        """Class probabilities (S, C, H, W) float32 for images (S, H, W) float32."""

    @abstractmethod
    def features(self, nets: Networks, images: torch.Tensor) -> torch.Tensor:
        """The task encoder's features (B, D) of images (B, 1, H, W): shift is measured in them."""

    def publish(self, site: SiteData, nets: Networks) -> dict[str, np.ndarray]:
        """Statistics for the other sites' bank; none by default. Never an image."""
        return {}
