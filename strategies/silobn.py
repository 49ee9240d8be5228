"""SiloBN: Andreux et al., Siloed Federated Learning for Multi-Centric Histopathology Datasets,
DART workshop at MICCAI 2020, section 3.

    (weights, scale gamma, shift beta)_{t+1} = sum_k (n_k / n) (...)_{t+1}^k
    running mean and variance (mu, sigma^2) stay at their site

so that what is learned is shared and what is measured is not. A network that is trained in batch
statistics uses the running ones in prediction only: its shared weights are then FedAvg's to the
bit. Where normalising layers have no running statistics (instance normalisation) it is FedAvg, and
``fedshift explain`` says so. A sub-network that only some sites train travels whole, as in FedBN.

For a site that has not trained the paper measures the statistics on its images. Here it is given
the mean of the sites' statistics: the variance between the sites' means is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fedshift.protocol.messages import TensorInfo
from fedshift.strategies.base import Family, Strategy


class SiloBN(Strategy):
    """FedAvg of everything but the running statistics of normalising layers."""

    paper: ClassVar[str] = "Andreux et al. 2020"
    family: ClassVar[Family | None] = "harmonise"
    plain: ClassVar[bool] = True
    site_bound: ClassVar[bool] = True
    travels: ClassVar[str] = "all but running statistics"
    stays: ClassVar[str] = "running statistics"

    def keeps(self, tensors: Mapping[str, TensorInfo]) -> frozenset[str]:
        """The running statistics and counters, beside what the method keeps."""
        measured = {
            name
            for name, info in tensors.items()
            if info.role == "norm_buffer" and info.sharing == "averaged"
        }
        return super().keeps(tensors) | measured
