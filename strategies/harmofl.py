"""HarmoFL: Jiang et al., HarmoFL: Harmonizing Local and Global Drifts in Federated Learning on
Heterogeneous Medical Images, AAAI 2022.

*Amplitude normalisation.* An image's spectrum is A e^{iP}. Every site sends the mean amplitude of
its training images, the coordinator averages over the sites, and every image x is replaced, in
training and in prediction, by the inverse transform of

    A_mean e^{i P(x)}

so that all images have the same amplitudes and their own phases. *Weight perturbation.* Every local
step follows the gradient at w + alpha g / ||g||: the step of :mod:`fedshift.strategies.fedsam`.
The coordinator averages as FedAvg does.

The paper follows a site's amplitude by an exponential mean over its batches; here it is the exact
mean over all slices of the training split, measured once and published through the bank. (Withheld
below ``policy.min_count`` slices; the mean is then the other sites'.) In the first round no mean is
there yet, and every site normalises to its own amplitude; an unseen site's images get the mean over
the training sites when they are predicted.

Networks whose steps a strategy may change (a method's ``stepped`` ones: the segmentation network)
see harmonised images in training. What else a method trains (a translator) sees them as they are,
and domain shift is measured on images as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedshift.protocol.needs import CHANGE, DESCEND
from fedshift.protocol.settings import setting
from fedshift.strategies.base import Family, Strategy


@dataclass(eq=False)
class HarmoFL(Strategy):
    """FedAvg on images of one common amplitude spectrum, in search of flat minima."""

    paper: ClassVar[str] = "Jiang et al. 2022"
    family: ClassVar[Family | None] = "harmonise"
    plain: ClassVar[bool] = True
    work: ClassVar[float] = 2.0
    travels: ClassVar[str] = "the model, amplitudes"
    stays: ClassVar[str] = "its amplitudes"

    alpha: float = setting(0.05, at_least=0)
    """How far uphill the gradient is taken, as a Euclidean norm over all weights; 0 for plain
    steps."""

    def needs(self) -> frozenset[str]:
        """Harmonised images and, unless ``alpha`` is 0, gradients taken uphill."""
        return frozenset({CHANGE, DESCEND} if self.alpha > 0 else {CHANGE})

    def rules(self) -> dict[str, dict[str, Any]]:
        """Harmonised images, and sharpness-aware steps unless their radius is 0."""
        steps = {"sharpness": {"rho": self.alpha}} if self.alpha > 0 else {}
        return {"harmonised": {}, **steps}
