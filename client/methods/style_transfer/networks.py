"""The three networks of variational style transfer: style encoder, content encoder, decoder.

Hung & Galeotti, "Ultrasound Variational Style Transfer to Generate Images Beyond the Observed
Domain", 2021, sections 2.1 to 2.3 and 2.5. The paper gives blocks of two convolutions "followed by
batch normalization and swish", five of them with max-pooling between, widths 64 to 1024, and a
decoder of "the inverse structure". It does not give the kernels, the latent variables' channels,
the up-sampling, or the output's activation. Chosen here: 3x3 convolutions, each followed by the
normalisation and swish; ``latent`` channels a scale, with a place for each pixel of the scale;
nearest-neighbour up-sampling and joined channels; no output activation.

The normalisation is batch or none. Normalising each image by itself, as instance and group
normalisation do, would remove the style that the style encoder is to read and AdaIN has set.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from fedshift.client.methods.style_transfer.style import adain
from fedshift.client.networks.gaussian import DiagonalGaussian

TranslatorNorm = Literal["none", "batch"]
Style = list[tuple[torch.Tensor, torch.Tensor]]
"""For each scale, finest first, the style feature's channel means and deviations, (B, C_i) each:
all of it that reaches the decoder, through AdaIN."""

_LOG_VARIANCE = 8.0
"""Bound of the latent log-variances: beyond it their exponential would overflow half precision."""

_FIRST_LOG_VARIANCE = -4.0


def widths(width: int, scales: int) -> list[int]:
    """The channels of each scale, finest first: ``width`` doubled at every halving."""
    return [width * 2**scale for scale in range(scales)]


class ConvBlock(nn.Sequential):
    """Two 3x3 convolutions, each with normalisation and swish: (B, inputs, H, W) to
    (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, norm: TranslatorNorm) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            convolution = nn.Conv2d(channels, outputs, kernel_size=3, padding=1)
            # He et al.'s variance: without normalisation, torch's own would let signals fade.
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers.append(convolution)
            if norm == "batch":
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.SiLU())
        super().__init__(*layers)


class Encoder(nn.Module):
    """Images (B, ``in_channels``, H, W) to features (B, width 2^i, H/2^i, W/2^i), finest first: the
    content encoder, and the trunk of the style encoder. H and W must be multiples of
    ``2**(scales - 1)``."""

    def __init__(self, in_channels: int, width: int, scales: int, norm: TranslatorNorm) -> None:
        super().__init__()
        inputs = [in_channels, *widths(width, scales)]
        self.blocks = nn.ModuleList(
            ConvBlock(before, after, norm) for before, after in pairwise(inputs)
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        # Grey values of about 0 to 1, spread to about -2 to 2.
        found = [self.blocks[0]((images - 0.5) / 0.25)]
        for block in self.blocks[1:]:
            found.append(block(F.max_pool2d(found[-1], kernel_size=2)))
        return found


class StyleEncoder(nn.Module):
    """Images to one latent Gaussian a scale, and latent variables to style features.

    At scale i a block reads from the trunk's features the mean and log-variance of q(z_i | I),
    (B, latent, H/2^i, W/2^i); after sampling, another turns z_i into the style feature f_s^(i),
    (B, width 2^i, H/2^i, W/2^i).
    """

    def __init__(
        self, in_channels: int, width: int, scales: int, latent: int, norm: TranslatorNorm
    ) -> None:
        super().__init__()
        self.trunk = Encoder(in_channels, width, scales, norm)
        channels = widths(width, scales)
        self.posterior = nn.ModuleList()
        for c in channels:
            # A last convolution without swish: a mean may be negative and has no bound.
            read = nn.Conv2d(c, 2 * latent, kernel_size=1)
            nn.init.kaiming_normal_(read.weight, nonlinearity="linear")
            assert read.bias is not None
            # Start with little noise: z is to tell styles apart before it is to look normal.
            nn.init.constant_(read.bias[latent:], _FIRST_LOG_VARIANCE)
            self.posterior.append(nn.Sequential(ConvBlock(c, c, norm), read))
        self.expand = nn.ModuleList(ConvBlock(latent, c, norm) for c in channels)

    def forward(self, images: torch.Tensor) -> list[DiagonalGaussian]:
        """The posteriors q(z_i | I), finest scale first."""
        found = []
        for read, features in zip(self.posterior, self.trunk(images), strict=True):
            mean, log_variance = read(features).float().chunk(2, dim=1)
            found.append(DiagonalGaussian(mean, log_variance.clamp(-_LOG_VARIANCE, _LOG_VARIANCE)))
        return found

    def features(self, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The style features f_s^(i) of latent variables z_i, finest scale first."""
        return [block(z) for block, z in zip(self.expand, latents, strict=True)]


class UNetDecoder(nn.Module):
    """Features of every scale, finest first, to an image (B, ``out_channels``, H, W): the decoding
    half of a U-Net with features of ``width`` 2^i channels."""

    def __init__(self, out_channels: int, width: int, scales: int, norm: TranslatorNorm) -> None:
        super().__init__()
        channels = widths(width, scales)
        self.deepest = ConvBlock(channels[-1], channels[-1], norm)
        self.blocks = nn.ModuleList(
            ConvBlock(below + here, here, norm)
            for here, below in zip(channels[-2::-1], channels[:0:-1], strict=True)
        )
        self.head = nn.Conv2d(channels[0], out_channels, kernel_size=1)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        hidden = self.deepest(features[-1])
        for block, skip in zip(self.blocks, features[-2::-1], strict=True):
            hidden = block(torch.cat([skip, F.interpolate(hidden, scale_factor=2.0)], dim=1))
        return self.head(hidden)


def render(decoder: nn.Module, content: Sequence[torch.Tensor], style: Style) -> torch.Tensor:
    """Decode content features after AdaIN to the style at every scale (Eq. 2): an image
    (B, 1, H, W)."""
    return decoder([adain(f, *statistics) for f, statistics in zip(content, style, strict=True)])
