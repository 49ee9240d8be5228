"""FedDG's exchange of amplitudes: Liu Q. et al., FedDG: Federated Domain Generalization on Medical
Image Segmentation via Episodic Learning in Continuous Frequency Space (ELCFS), CVPR 2021, section
3.2: continuous frequency space interpolation.

An image's spectrum is A e^{iP}. In a window of low frequencies its amplitude is moved towards that
of another site, with lambda drawn from [0, 1] for every image, and all else is kept:

    A' = (1 - lambda) A + lambda A_other        inside the window,   A' = A outside

so that every site trains on the appearances between its own and the others'. The coordinator
averages as FedAvg does.

Two things differ from the paper. **The strategy is this exchange alone**: the paper's
boundary-oriented episodic training (meta-steps on the moved images and a contrastive loss at the
boundary) is left out; instead a ``share`` of each batch is moved. And **no amplitude of a single
image is published**: the amplitude of one image tells much of it, and phase retrieval can do the
rest. Sites publish mean and standard deviation of each amplitude in the window over all slices of
their training split (withheld below ``policy.min_count`` slices), and A_other is drawn from the
normal distribution of these moments, cut at 0, by itself at each frequency. In the first round
nothing is published yet, and images stay as they are.

The segmentation network alone sees moved images; what else a method trains does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedshift.protocol.settings import setting
from fedshift.strategies.base import Strategy


@dataclass(eq=False)
class FedDG(Strategy):
    """FedAvg of sites that train in each other's low-frequency appearance."""

    paper: ClassVar[str] = "Liu Q. et al. 2021"
    travels: ClassVar[str] = "the model, amplitudes"
    stays: ClassVar[str] = "its amplitudes"
    segmenting: ClassVar[bool] = True

    share: float = setting(0.5, at_least=0, at_most=1)
    """The share of the training slices that are moved."""
    reach: float = setting(0.1, at_least=0, at_most=0.5)
    """The window's half side, as a share of the image's side; at 0 it is the mean intensity."""

    def rules(self) -> dict[str, dict[str, Any]]:
        """The exchange, unless nothing is to be moved."""
        settings = {"share": self.share, "reach": self.reach}
        return {"amplitude_exchange": settings} if self.share > 0 else {}
