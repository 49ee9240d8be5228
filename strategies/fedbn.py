"""FedBN: Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization,
ICLR 2021.

    w_{t+1,l} = sum_k (n_k / n) w_{t+1,l}^k   for every layer l that does not normalise;
    the scale, shift and running statistics of normalising layers stay at their site.

The paper speaks of batch normalisation; here it is every normalising layer of the networks, so
that it also says something of instance-normalised ones. Without such layers it is FedAvg. A
sub-network that only some sites train travels whole: the others have no normalisation of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fedshift.protocol.messages import TensorInfo
from fedshift.strategies.base import Family, Strategy


class FedBN(Strategy):
    """FedAvg of everything but the normalising layers."""

    paper: ClassVar[str] = "Li X. et al. 2021"
    family: ClassVar[Family | None] = "harmonise"
    plain: ClassVar[bool] = True
    site_bound: ClassVar[bool] = True
    travels: ClassVar[str] = "all other layers"
    stays: ClassVar[str] = "normalising layers"

    def keeps(self, tensors: Mapping[str, TensorInfo]) -> frozenset[str]:
        """The normalising layers' tensors, beside what the method keeps."""
        norms = {
            name
            for name, info in tensors.items()
            if info.role in ("norm", "norm_buffer") and info.sharing == "averaged"
        }
        return super().keeps(tensors) | norms
