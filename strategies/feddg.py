"""FedDG: Liu Q. et al., FedDG: Federated Domain Generalization on Medical Image Segmentation via
Episodic Learning in Continuous Frequency Space (ELCFS), CVPR 2021.

**Continuous frequency space** (section 3.2). An image's spectrum is A e^{iP}. In a window of low
frequencies its amplitude is moved towards that of another site, with lambda drawn from [0, 1] for
every image, and all else is kept:

    A' = (1 - lambda) A + lambda A_other        inside the window,   A' = A outside

so that every site meets the appearances between its own and the others'.

**Boundary-oriented episodes** (section 3.3, :mod:`fedshift.client.rules.base.episodes`). A site's
step on its own images x is tried on the moved ones t, and what holds there too is learned:

    L(x; w) + L(t; w') + boundary L_boundary(x, t; w')        w' = w - inner_lr grad L(x; w)

The coordinator averages as FedAvg does. With ``inner_lr`` and ``boundary`` 0 sites train on x and t
alike: the exchange alone, as in the paper's ablation.

What differs from the paper: **no amplitude of a single image is published**. The amplitude of one
image tells much of it, and phase retrieval can do the rest. Sites publish mean and standard
deviation of each amplitude in the window over all slices of their training split (withheld below
``policy.min_count`` slices), and A_other is drawn from the normal distribution of these moments,
cut at 0, by itself at each frequency. Each x has one t, of a site drawn for it, where the paper has
one of every other site. L is soft Dice + cross-entropy as in every method here. In the first round
nothing is published yet, and sites train as FedAvg's do.

Networks whose steps a strategy may change (a method's ``stepped`` ones: the segmentation network)
see moved images; what else a method trains does not. The boundary is that of a task whose labels
give every pixel a class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedshift.protocol.needs import CHANGE, DECODER, DESCEND, PIXEL_CLASSES
from fedshift.protocol.settings import setting
from fedshift.strategies.base import Family, Strategy


@dataclass(eq=False)
class FedDG(Strategy):
    """FedAvg of sites whose steps must hold in each other's low-frequency appearance."""

    paper: ClassVar[str] = "Liu Q. et al. 2021"
    family: ClassVar[Family | None] = "harmonise"
    travels: ClassVar[str] = "the model, amplitudes"
    stays: ClassVar[str] = "its amplitudes"
    work: ClassVar[float] = 3.0

    reach: float = setting(0.1, at_least=0, at_most=0.5)
    """The window's half side, as a share of the image's side; at 0 it is the mean intensity."""
    inner_lr: float = setting(0.001, at_least=0)
    """The step of the meta-training, of gradient descent."""
    boundary: float = setting(0.1, at_least=0)
    """The weight of the contrast at the boundary."""
    temperature: float = setting(0.05, at_least=1e-3)
    """The temperature of that contrast."""

    def needs(self) -> frozenset[str]:
        """Images that are moved, gradients of episodes and, unless ``boundary`` is 0, structures
        with a boundary, and features beside it."""
        steps = frozenset({CHANGE, DESCEND})
        return steps | {DECODER, PIXEL_CLASSES} if self.boundary > 0 else steps

    def rules(self) -> dict[str, dict[str, Any]]:
        """The exchange and the episodes."""
        return {
            "amplitude_exchange": {
                "reach": self.reach,
                "inner_lr": self.inner_lr,
                "boundary": self.boundary,
                "temperature": self.temperature,
            }
        }
