"""FedPer: Arivazhagan et al., Federated Learning with Personalization Layers, 2019, Algorithms 1
and 2.

    W_B <- sum_k (n_k / n) W_B^k        the base layers, averaged
    W_P^k                               the personalisation layers, which stay at site k

A site trains both together. The paper's personalisation layers are the last ones of a classifier,
and how many is for the user to try. Here ``personal`` names them by patterns of tensor names
(``fedshift explain`` counts what they match); the default is the LV-Unet's last convolution, which
makes classes of features. The paper draws each site's layers at random; here all begin alike, since
otherwise their mean, which is what a site that has not trained is given, would mean nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from fedshift import UserError
from fedshift.protocol.messages import TensorInfo
from fedshift.strategies.base import Family, Strategy
from fedshift.strategies.base.personal import averaged


@dataclass(eq=False)
class FedPer(Strategy):
    """FedAvg of all layers but those that are the site's own."""

    paper: ClassVar[str] = "Arivazhagan et al. 2019"
    family: ClassVar[Family | None] = "personalise"
    travels: ClassVar[str] = "all other layers"
    stays: ClassVar[str] = "the last layers"

    personal_layers: tuple[str, ...] = ("segmenter/head.*",)
    """Patterns (``*``, ``?``, ``[...]``) of ``sub-network/tensor``, of averaged sub-networks."""

    def keeps(self, tensors: Mapping[str, TensorInfo]) -> frozenset[str]:
        """The tensors that ``personal_layers`` match, beside what the method keeps.

        Raises :class:`UserError` when a pattern matches none, or all match everything.
        """
        names = sorted(averaged(tensors, self.name))
        layers = set()
        for pattern in self.personal_layers:
            found = {name for name in names if fnmatchcase(name, pattern)}
            if not found:
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
                raise UserError(
                    f"strategy.personal_layers: '{pattern}' matches no tensor of an averaged "
                    f"sub-network; near are {', '.join(near)}"
                )
            layers |= found
        if not layers or layers == set(names):
            raise UserError(
                "strategy.personal_layers must match some of the averaged tensors and not all: "
                "strategy=fedavg shares them all, strategy=local none"
            )
        return super().keeps(tensors) | layers
