"""Boundary-oriented episodes: Liu Q. et al., FedDG: Federated Domain Generalization on Medical
Image Segmentation via Episodic Learning in Continuous Frequency Space, CVPR 2021, section 3.3.

Of images x with labels, and t, images in the appearance of another site:

    meta-train    w' = w - beta grad L(x; w)
    meta-test     L(t; w') + gamma L_boundary(x, t; w')

and a step follows the gradient of L(x; w) + the meta-test's: what is learned at home must also hold
elsewhere. The meta-test's gradient is taken at first order (Finn et al., Model-Agnostic
Meta-Learning, ICML 2017, section 5.2): at w', as if w' - w were constant.

L_boundary draws together what the network makes of a structure's boundary, in x and in t alike, and
keeps it apart from what it makes of the surroundings, between which scanners blur the line. h_m
are features of unit length, the mean over a band of pixels: inside the boundary or outside it, of
every image that shows the structure. With s_mp = h_m . h_p / tau, over the pairs (m, p) of bands of
one side and all q of the other,

    L_boundary = mean of -log( exp(s_mp) / (exp(s_mp) + sum_q exp(s_mq)) )

summed over the structures. Features are the decoder's two finest, as the paper takes those of the
last two deconvolutions. (The paper's denominator has the q alone, which leaves the term without a
lower bound; the authors' own program computes it as above.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from fedshift.client.contract.step import Batch, Decoder, Gradients, Losses, Step
from fedshift.client.contract.task import Task
from fedshift.client.rules.base.displaced import displaced
from fedshift.sites.types import IGNORED

BAND = 2
"""Pixels of the network grid that a band is wide."""
_APART = -1e4
"""The similarity of what is not to be compared; finite, so that its gradient is 0 and not nan."""


@dataclass(frozen=True)
class Episode(Step):
    """Try every step elsewhere.

    ``elsewhere`` gives images (B, C, H, W) the appearance of other sites. ``inner_lr`` is beta,
    ``boundary`` gamma, at 0 without the term, and ``temperature`` tau; L is the loss of ``task``.
    """

    elsewhere: Callable[[torch.Tensor], torch.Tensor]
    inner_lr: float
    boundary: float
    temperature: float
    task: Task

    def change(self, images: torch.Tensor) -> torch.Tensor:
        """The images x, then t: both are augmented."""
        return torch.cat([images, self.elsewhere(images)])

    def descend(self, net: nn.Module, batch: Batch, gradients: Gradients) -> Losses:
        half = len(batch) // 2
        losses = gradients(batch.rows(slice(half)))
        with displaced(net, lambda norm: -self.inner_lr / gradients.scale):
            gradients.add(lambda: self.meta_test(net, batch))
        return losses

    def meta_test(self, net: nn.Module, batch: Batch) -> torch.Tensor:
        """The meta-test's loss, a scalar, of the weights now in ``net``; ``batch`` is x, then t."""
        half = len(batch) // 2
        moved = batch.rows(slice(half, None))
        if self.boundary == 0:
            return self.task.loss(net(moved.images), moved.labels, moved.told)
        assert isinstance(net, Decoder)
        decoded = net.decode(moved.images)
        predicted = net.head(decoded[-1])
        loss = self.task.loss(predicted, moved.labels, moved.told)
        features = torch.cat([_fused(net.decode(batch.images[:half])), _fused(decoded)])
        classes = predicted.shape[1]
        return loss + self.boundary * boundary_loss(
            features, batch.labels, classes, self.temperature
        )


def boundary_loss(
    features: torch.Tensor, labels: torch.Tensor, classes: int, temperature: float
) -> torch.Tensor:
    """L_boundary of ``features`` (N, D, H, W) with ``labels`` (N, H, W), indices below ``classes``;
    0 where no structure is shown by two images. Pixels to be ignored lie on neither side of a
    boundary; a structure that an image does not annotate shows none there."""
    # Differences of unit vectors' products are too fine for half precision.
    with torch.autocast(features.device.type, enabled=False):
        found = features.float()
        counts = labels != IGNORED
        terms = [_contrast(found, labels == s, counts, temperature) for s in range(1, classes)]
        return torch.stack(terms).sum()


def bands(shown: torch.Tensor, around: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The pixels of a structure ``shown`` (N, H, W) within :data:`BAND` of what is ``around`` it,
    (N, H, W), and those of the latter as near; the image's edge is no boundary."""
    return shown & _dilated(around), _dilated(shown) & around


def _dilated(mask: torch.Tensor) -> torch.Tensor:
    grown = F.max_pool2d(mask.float().unsqueeze(1), 2 * BAND + 1, stride=1, padding=BAND)
    return grown.squeeze(1) > 0


def _contrast(
    features: torch.Tensor, shown: torch.Tensor, counts: torch.Tensor, temperature: float
) -> torch.Tensor:
    inside, outside = bands(shown, ~shown & counts)
    both = torch.cat([_mean(features, inside), _mean(features, outside)])
    count = len(shown)
    known = (inside.any(dim=(1, 2)) & outside.any(dim=(1, 2))).repeat(2)
    side = torch.arange(2 * count, device=both.device) // count
    alike = side[:, None] == side
    compared = known[:, None] & known
    likeness = both @ both.T / temperature
    against = torch.logsumexp(likeness.masked_fill(~compared | alike, _APART), dim=1)
    itself = torch.eye(2 * count, dtype=torch.bool, device=both.device)
    pairs = compared & alike & ~itself
    terms = torch.where(pairs, F.softplus(against[:, None] - likeness), 0.0)
    return terms.sum() / pairs.sum().clamp(min=1)


def _mean(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of ``features`` (N, D, H, W) over ``mask`` (N, H, W), of unit length, (N, D)."""
    return F.normalize((features * mask.unsqueeze(1)).sum(dim=(2, 3)), dim=1)


def _fused(decoded: Sequence[torch.Tensor]) -> torch.Tensor:
    """The two finest of the decoder's features, at the size of the finest."""
    size = decoded[-1].shape[-2:]
    return torch.cat([F.interpolate(found, size, mode="bilinear") for found in decoded[-2:]], dim=1)
