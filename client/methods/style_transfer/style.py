"""What of a feature map counts as style: its channels' statistics, and their products.

AdaIN: Huang & Belongie, "Arbitrary Style Transfer in Real-Time with Adaptive Instance
Normalization", ICCV 2017. Gram matrix: Gatys et al., "A Neural Algorithm of Artistic Style", 2015.
"""

from __future__ import annotations

import torch

EPSILON = 1e-5
"""Added to a channel's variance, so that a constant channel has a defined deviation."""


def channel_statistics(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and standard deviation over the pixels of each channel.

    ``features`` (B, C, H, W) give two tensors (B, C); the deviation is that of the population
    (divided by H W), and never zero.
    """
    variance, mean = torch.var_mean(features.flatten(2), dim=2, correction=0)
    return mean, (variance + EPSILON).sqrt()


def adain(content: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Give every channel of ``content`` (B, C, H, W) a new mean and standard deviation, (B, C)
    each: sigma(s) (c - mu(c)) / sigma(c) + mu(s)."""
    old_mean, old_deviation = channel_statistics(content)
    scale = deviation / old_deviation
    shift = mean - scale * old_mean
    return content * scale[:, :, None, None] + shift[:, :, None, None]


def gram_matrix(features: torch.Tensor) -> torch.Tensor:
    """The products of every two channels, summed over the pixels of ``features`` (B, C, H, W) and
    divided by C H W: (B, C, C). Float32 whatever the features' type: sums over pixels overflow
    half precision."""
    flat = features.float().flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])
