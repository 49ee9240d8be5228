"""A discriminator that judges overlapping patches: Isola et al., "Image-to-Image Translation with
Conditional Adversarial Networks", CVPR 2017, section 3.2.2.

Convolutions 4x4 of stride 2 and leaky ReLUs of slope 0.2, then one 3x3 convolution to the logits.
With three stages a logit sees 38 x 38 pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from fedshift.client.networks.halving import check_halvings


class PatchDiscriminator(nn.Module):
    """Images (B, ``in_channels``, H, W) to one logit a patch, (B, 1, H / 2**stages, ...).

    Stage ``k`` has ``width * 2**k`` channels. ``norm="instance"`` normalises every stage but the
    first, without scale and shift: no tensor of it belongs to a normalising layer. H and W must be
    multiples of ``2**stages`` and leave at least two pixels. Weights are drawn from torch's default
    generator.
    """

    def __init__(
        self,
        in_channels: int,
        width: int = 16,
        stages: int = 3,
        norm: Literal["instance", "none"] = "instance",
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels = in_channels
        for stage in range(stages):
            out = width * 2**stage
            # A bias before a normalisation would change nothing, and its gradient is rounding.
            bias = stage == 0 or norm == "none"
            self.stages.append(
                nn.Conv2d(channels, out, kernel_size=4, stride=2, padding=1, bias=bias)
            )
            channels = out
        self.norm = norm
        self.head = nn.Conv2d(channels, 1, kernel_size=3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Raises :class:`fedshift.UserError` when the images cannot be halved once a stage."""
        check_halvings(images.shape[-2:], len(self.stages), "the discriminator")
        hidden = images
        for index, stage in enumerate(self.stages):
            hidden = stage(hidden)
            if index and self.norm == "instance":
                hidden = F.group_norm(hidden, hidden.shape[1])
            hidden = F.leaky_relu(hidden, 0.2, inplace=True)
        return self.head(hidden)
