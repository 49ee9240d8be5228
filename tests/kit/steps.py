"""Steps of a strategy, made in a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fedshift.client.contract.step import Seen, Step


@dataclass(frozen=True)
class Penalised(Step):
    """Adds what ``term`` makes of the networks."""

    term: Callable[[Mapping[str, nn.Module]], torch.Tensor]

    def penalty(self, nets: Mapping[str, nn.Module], seen: Seen) -> torch.Tensor:
        return self.term(nets)
