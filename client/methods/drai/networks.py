"""The networks of dual adversarial inference.

Havaei et al., "Conditional Generation of Medical Images via Disentangled Adversarial Inference",
2021, Fig. 1 and appendix B.1. The paper gives which networks there are and that the encoders, and
the discriminators, of style and content share nothing; it gives no layer. Chosen here: 4x4
convolutions of stride 2 downwards, doubling and 3x3 convolutions upwards, two layers for codes,
leaky ReLUs of slope 0.2, and no normalisation anywhere, because an image's brightness and contrast
are what a style code must see.

Weights are drawn from torch's default generator.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from fedshift.client.networks.gaussian import DiagonalGaussian

SLOPE = 0.2
LOG_VARIANCE = 10.0
"""The largest size of an inferred logarithm of a variance; its exponential stays finite."""


class ImageEncoder(nn.Module):
    """Images (B, ``in_channels``, H, W) to q(code|image): half of G_{c,z}.

    ``size`` is (H, W), each a multiple of ``2**halvings``; stage k has ``width * 2**k`` channels.
    """

    def __init__(
        self, in_channels: int, size: tuple[int, int], width: int, halvings: int, code: int
    ) -> None:
        super().__init__()
        self.stages = _downwards(in_channels, width, halvings)
        self.head = nn.Linear(_flat(size, width, halvings), 2 * code)
        _scale(self.stages)

    def forward(self, images: torch.Tensor) -> DiagonalGaussian:
        return _gaussian(self.head(self.stages(images)))


class ConditionEncoder(nn.Module):
    """Conditions (B, ``condition``) to q(content|condition): E_phi."""

    def __init__(self, condition: int, hidden: int, code: int) -> None:
        super().__init__()
        self.layers = _perceptron(condition, hidden, 2 * code)

    def forward(self, conditions: torch.Tensor) -> DiagonalGaussian:
        return _gaussian(self.layers(conditions))


class CodePredictor(nn.Module):
    """One code (B, ``known``) to the other (B, ``wanted``): F_c and F_z."""

    def __init__(self, known: int, hidden: int, wanted: int) -> None:
        super().__init__()
        self.layers = _perceptron(known, hidden, wanted)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(codes)
        return found


class ImageGenerator(nn.Module):
    """Style (B, ``style``) and content (B, ``content``) codes to images (B, ``out_channels``, H, W)
    of any range: G_x."""

    def __init__(
        self,
        out_channels: int,
        size: tuple[int, int],
        width: int,
        halvings: int,
        style: int,
        content: int,
    ) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in reversed(range(halvings))]
        self.shape = (widths[0], size[0] // 2**halvings, size[1] // 2**halvings)
        self.start = nn.Linear(style + content, _flat(size, width, halvings))
        self.stages = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
            for inputs, outputs in pairwise([*widths, width])
        )
        self.head = nn.Conv2d(width, out_channels, kernel_size=3, padding=1)
        _scale(self.start, self.stages)

    def forward(self, style: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        hidden = self.start(torch.cat([style, content], dim=1)).view(-1, *self.shape)
        for stage in self.stages:
            hidden = F.leaky_relu(hidden, SLOPE)
            hidden = F.leaky_relu(stage(F.interpolate(hidden, scale_factor=2.0)), SLOPE)
        image: torch.Tensor = self.head(hidden)
        return image


class PairDiscriminator(nn.Module):
    """Images (B, ``in_channels``, H, W), alone or each with a code (B, ``code``), to logits (B,).

    D_x with ``code=0``; D_{x,t}, D_{x,z} and D_{x,c} otherwise.
    """

    def __init__(
        self, in_channels: int, size: tuple[int, int], width: int, halvings: int, code: int = 0
    ) -> None:
        super().__init__()
        hidden = 4 * width
        self.stages = _downwards(in_channels, width, halvings)
        self.image = nn.Linear(_flat(size, width, halvings), hidden)
        self.code = nn.Linear(code, hidden) if code else None
        self.head = nn.Sequential(
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden * (1 + bool(code)), hidden),
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden, 1),
        )
        _scale(self.stages)

    def forward(self, images: torch.Tensor, codes: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.image(self.stages(images))
        if self.code is not None and codes is not None:
            hidden = torch.cat([hidden, self.code(codes)], dim=1)
        logits: torch.Tensor = self.head(hidden).squeeze(1)
        return logits


def _downwards(in_channels: int, width: int, halvings: int) -> nn.Sequential:
    """Images to a flat vector of :func:`_flat` features."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([in_channels, *(width * 2**k for k in range(halvings))]):
        layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, nn.Flatten())


def _scale(*parts: nn.Module) -> None:
    """Weights that keep the signal's size through leaky ReLUs (He et al., ICCV 2015): without any
    normalisation torch's own would shrink it in every layer, and codes would hardly reach the
    image."""
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, a=SLOPE)


def _flat(size: tuple[int, int], width: int, halvings: int) -> int:
    return width * 2 ** (halvings - 1) * (size[0] // 2**halvings) * (size[1] // 2**halvings)


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LeakyReLU(SLOPE),
        nn.Linear(hidden, hidden),
        nn.LeakyReLU(SLOPE),
        nn.Linear(hidden, outputs),
    )


def _gaussian(values: torch.Tensor) -> DiagonalGaussian:
    mean, log_variance = values.float().chunk(2, dim=1)
    return DiagonalGaussian(mean, log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE))
