"""The translator of one vendor's images into another's.

Yan et al., MICCAI 2019, show CycleGAN's generators in a figure only. Chosen here: CycleGAN's shape
(Zhu et al., ICCV 2017: two halvings, residual blocks, two doublings, instance normalisation), made
smaller, with the first layer's output added again at full size, and with half of the input's own
logit added before the final sigmoid. So the image's structure need not pass the bottleneck, and
what comes out lies in [0, 1].
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fedshift.client.networks.halving import check_halvings

HALVINGS = 2
"""How often the translator halves images."""
CARRIED = 0.5
"""The share of the input's logit in the output's."""
MARGIN = 0.02
"""The logit of an image is taken of values at least so far from 0 and 1."""


class Translator(nn.Module):
    """Images (B, ``channels``, H, W) to images of that shape in [0, 1]. Values of the input outside
    that range are clipped to it.

    The levels have ``width``, ``2 width`` and ``4 width`` channels, the last one ``blocks``
    residual blocks. H and W must be multiples of 4. Normalisation has neither scale nor shift, so
    no tensor belongs to a normalising layer. Weights are drawn from torch's default generator.
    """

    def __init__(self, channels: int, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        # No bias before a normalisation: it would change nothing, and its gradient is rounding.
        self.stem = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        self.down = nn.ModuleList(
            nn.Conv2d(width * k, 2 * width * k, kernel_size=3, stride=2, padding=1, bias=False)
            for k in (1, 2)
        )
        deepest = 4 * width
        self.blocks = nn.ModuleList(
            nn.Conv2d(deepest, deepest, kernel_size=3, padding=1, bias=False)
            for _ in range(2 * blocks)
        )
        self.up = nn.ModuleList(
            nn.Conv2d(2 * width * k, width * k, kernel_size=3, padding=1, bias=False)
            for k in (2, 1)
        )
        self.head = nn.Conv2d(width, channels, kernel_size=3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Raises :class:`fedshift.UserError` when the images cannot be halved twice."""
        check_halvings(images.shape[-2:], HALVINGS, "the translator")
        images = images.clamp(0, 1)
        first = hidden = _activate(self.stem(images))
        for down in self.down:
            hidden = _activate(down(hidden))
        for conv1, conv2 in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            hidden = hidden + _normalise(conv2(_activate(conv1(hidden))))
        for up in self.up:
            hidden = _activate(up(F.interpolate(hidden, scale_factor=2.0)))
        carried = torch.logit(images, eps=MARGIN)
        return torch.sigmoid(self.head(first + hidden) + CARRIED * carried)


def _normalise(hidden: torch.Tensor) -> torch.Tensor:
    """Instance normalisation, as group normalisation with one channel a group: the same numbers,
    and faster on a CPU."""
    return F.group_norm(hidden, hidden.shape[1])


def _activate(hidden: torch.Tensor) -> torch.Tensor:
    return F.relu(_normalise(hidden), inplace=True)
