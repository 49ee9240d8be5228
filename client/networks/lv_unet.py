"""The LV-Unet: an asymmetric residual encoder-decoder for 2-D segmentation.

Yan et al., "The Domain Shift Problem of Medical Image Segmentation and Vendor-Adaptation by
Unet-GAN", MICCAI 2019, section 2 and Fig. 2(a).

The paper gives: residual blocks, an asymmetric encoder-decoder, max-pooling, and that residual
blocks 7 and 9 of the encoder path lie after the third max-pooling. It does not give the blocks per
level, the widths, the normalisation, the decoder or the head. Chosen here:

* the encoder has ``blocks`` residual blocks a level and one more at the deepest level; the decoder
  has one block a level. With ``depth=4, blocks=2`` the encoder is 1-2 | 3-4 | 5-6 | 7-8-9, a bar
  being a max-pooling, so blocks 7 and 9 are the first and the last of the deepest level;
* level ``k`` has ``width * 2**k`` channels;
* a block is conv 3x3, norm, ReLU, conv 3x3, norm, added to its input (through a 1x1 convolution
  where the number of channels changes), ReLU (He et al., CVPR 2016);
* the decoder narrows with a 1x1 convolution, doubles by repetition and adds the encoder's output of
  that level (as Myronenko, BrainLes 2018), a fifth faster on a CPU than joining channels;
* instance normalisation by default, with affine parameters.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from fedshift.client.networks.halving import check_halvings

Norm = Literal["instance", "group", "batch", "none"]
NORMS: tuple[str, ...] = get_args(Norm)


class LVUNet(nn.Module):
    """Images (B, ``in_channels``, H, W) to class logits (B, ``classes``, H, W).

    ``depth`` is the number of levels, so there are ``depth - 1`` max-poolings: H and W must be
    multiples of ``2**(depth - 1)`` and leave at least two pixels at the deepest level.
    ``norm="group"`` uses at most 8 groups. Weights are drawn from torch's default generator.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        width: int = 32,
        depth: int = 4,
        blocks: int = 2,
        norm: Norm = "instance",
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth)]
        self.depth, self.blocks = depth, blocks
        self.encoder = nn.ModuleList()
        channels = in_channels
        for out in [*(out for out in widths for _ in range(blocks)), widths[-1]]:
            self.encoder.append(ResidualBlock(channels, out, norm))
            channels = out
        self.narrow = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for out in reversed(widths[:-1]):
            self.narrow.append(nn.Conv2d(2 * out, out, kernel_size=1))
            self.decoder.append(ResidualBlock(out, out, norm))
        self.head = nn.Conv2d(width, classes, kernel_size=1)

    @property
    def bottleneck(self) -> nn.Module:
        """The last residual block of the encoder."""
        return self.encoder[-1]

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the output of every residual block of the encoder; entry ``n - 1`` is block n.

        Raises :class:`fedshift.UserError` when the images cannot be halved once a pooling.
        """
        check_halvings(
            images.shape[-2:], self.depth - 1, f"method.depth={self.depth}", "method.depth"
        )
        outputs: list[torch.Tensor] = []
        hidden = images
        for index, block in enumerate(self.encoder):
            # The extra block of the deepest level has index depth * blocks: no pooling before it.
            if index % self.blocks == 0 and 0 < index < self.depth * self.blocks:
                hidden = F.max_pool2d(hidden, kernel_size=2)
            hidden = block(hidden)
            outputs.append(hidden)
        return outputs

    def decode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the encoder's result and the output of every block of the decoder; the last one,
        (B, width, H, W), is what ``head`` makes classes of."""
        outputs = self.encode(images)
        decoded = [outputs[-1]]
        for level, (narrow, block) in enumerate(zip(self.narrow, self.decoder, strict=True)):
            skip = outputs[(self.depth - 1 - level) * self.blocks - 1]
            decoded.append(block(skip + F.interpolate(narrow(decoded[-1]), scale_factor=2.0)))
        return decoded

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.decode(images)[-1])


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions added to their input: (B, inputs, H, W) to (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        # A normalisation's shift makes the convolution's bias redundant.
        bias = norm == "none"
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=bias)
        self.norm1 = normalisation(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=bias)
        self.norm2 = normalisation(norm, outputs)
        self.shortcut = (
            nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, kernel_size=1)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.norm1(self.conv1(images)), inplace=True)
        hidden = self.norm2(self.conv2(hidden))
        return F.relu(hidden + self.shortcut(images), inplace=True)


class InstanceNorm(nn.InstanceNorm2d):
    """Instance normalisation computed as group normalisation with one channel a group: the same
    numbers, and a training step a tenth faster on a CPU."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.group_norm(images, self.num_features, self.weight, self.bias, self.eps)


def normalisation(kind: Norm, channels: int) -> nn.Module:
    """The normalising layer ``kind`` for images with ``channels`` channels."""
    match kind:
        case "instance":
            return InstanceNorm(channels, affine=True)
        case "group":
            return nn.GroupNorm(math.gcd(channels, 8), channels)
        case "batch":
            return nn.BatchNorm2d(channels)
        case "none":
            return nn.Identity()
    raise ValueError(f"norm must be one of {', '.join(NORMS)}, not {kind!r}")
