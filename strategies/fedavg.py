"""FedAvg: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized
Data, AISTATS 2017, Algorithm 1.

    w_{t+1} = sum_k (n_k / n) w_{t+1}^k      over the sites k of the round, n = sum_k n_k

Running statistics of normalisation layers are averaged like weights; batch counters are rounded.
"""

from __future__ import annotations

from typing import ClassVar

from fedshift.strategies.base import Family, Strategy


class FedAvg(Strategy):
    """The mean of the sites' weights, weighted by their examples: what the base does."""

    paper: ClassVar[str] = "McMahan et al. 2017"
    family: ClassVar[Family | None] = "nothing"
