"""Cyclic weight transfer: Chang et al., Distributed deep learning networks among institutions for
medical imaging, Journal of the American Medical Informatics Association 25(8), 2018; as cyclic
institutional incremental learning in Sheller et al., Federated learning in medicine, Scientific
Reports 10, 2020.

    w_{t+1} = w_{t+1}^k      with k the next site in turn

The model goes from site to site, is trained at one in each round, and is sent on as it is. After
the last site comes the first again. With as many rounds as sites each is visited once, which
Sheller et al. call institutional incremental learning. The papers leave the order open.

A site that fails, or whose update is rejected, is passed over: the next one gets the model as the
last one left it. Running statistics are those of the last site.

A round is one visit, so that it takes the steps of one site and not of all: see
docs/strategies.md on comparing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedshift import UserError, derive_seed
from fedshift.protocol.messages import Instruction, TensorInfo
from fedshift.strategies.base import Strategy


@dataclass(eq=False)
class Cyclic(Strategy):
    """One site a round, in turn."""

    paper: ClassVar[str] = "Chang et al. 2018"
    combines: ClassVar[str] = "trained by one site after another"

    weighting: Literal["uniform"] = "uniform"
    """There is nothing to weigh."""
    order: Literal["name", "random"] = "name"
    """By name, or in an order that is drawn for every cycle."""

    def begin(
        self, sites: Mapping[str, int], tensors: Mapping[str, TensorInfo], instruction: Instruction
    ) -> None:
        """Bind to a run; raises :class:`UserError` also where one site a round cannot do."""
        if self.fraction != 1 or self.min_sites != 1:
            raise UserError(
                "strategy=cyclic trains at one site a round; leave strategy.fraction and "
                "strategy.min_sites at 1"
            )
        for info in tensors.values():
            if len(info.domains) > 1:
                raise UserError(
                    f"strategy=cyclic trains at one site a round and the sub-network "
                    f"{info.network} needs {' and '.join(info.domains)} in every round; choose "
                    "another strategy or another method"
                )
        super().begin(sites, tensors, instruction)

    def drawn(self) -> int:
        """One."""
        return 1

    def select(self, server_round: int) -> list[str]:
        """Whose turn it is."""
        cycle, turn = divmod(server_round - 1, len(self.sites))
        names = list(self.sites)
        if self.order == "random":
            seed = derive_seed(self.instruction.seed, cycle, "site order")
            names = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
        return [names[turn]]
