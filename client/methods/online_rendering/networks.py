"""The networks of online adversarial rendering: renderer, segmentor and discriminators.

Yang et al., "Generalizing Deep Models for Ultrasound Image Segmentation", MICCAI 2018, section 2.1
and Fig. 3. The paper shows them in a figure without numbers; the layers below follow the authors'
published configuration, with ``width=32``:

* a convolution is 3x3 with normalisation and ReLU; going up is a 4x4 transposed convolution of
  stride 2 with both, joined to the encoder's output of that size; going down is max-pooling;
* the renderer has three sizes and a linear output, so it can return any intensity; its auxiliary
  output comes from half the size;
* the segmentor has four sizes and two auxiliary outputs, from a quarter and from half of the size;
* the discriminators have four convolutions. The paper's have no stride and end in one linear layer
  over all pixels (6.6 million weights at 320 x 320, which judge each position by itself and fix
  the image size). Here every convolution has stride 2 and the mean over positions is taken before
  the linear layer: small enough to send their gradients, and for images of any size.

Weights are drawn from torch's default generator, in PyTorch's usual ranges: normalisation makes the
paper's (standard deviation 0.01) equivalent.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from fedshift.client.networks.lv_unet import Norm, normalisation

HALVINGS = 3
"""How often the segmentor halves an image; the renderer does so once less."""
MIXED = 16
"""Channels from which the renderer's auxiliary output is made."""


class Renderer(nn.Module):
    """Images (B, ``channels``, H, W) to images of that shape; H and W are multiples of 4."""

    def __init__(self, channels: int, *, width: int = 32, norm: Norm = "batch") -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [
                nn.Sequential(_conv(channels, width, norm), _conv(width, width, norm)),
                nn.Sequential(_conv(width, 2 * width, norm), _conv(2 * width, 2 * width, norm)),
                _conv(2 * width, 4 * width, norm),
            ]
        )
        self.up = nn.ModuleList([_Up(4 * width, norm), _Up(2 * width, norm)])
        self.head = nn.Conv2d(width, channels, kernel_size=1)
        self.half_head = nn.Sequential(
            nn.Conv2d(2 * width, MIXED, kernel_size=1), _doubling(MIXED, channels)
        )

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rendered images and the auxiliary ones, both (B, ``channels``, H, W)."""
        *_, half, full = _decoded(images, self.down, self.up)
        return self.head(full), self.half_head(half)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The rendered images (B, ``channels``, H, W)."""
        *_, full = _decoded(images, self.down, self.up)
        return self.head(full)


class Segmentor(nn.Module):
    """Images (B, ``channels``, H, W) to class logits (B, ``classes``, H, W); H and W are multiples
    of 8."""

    def __init__(
        self, channels: int, classes: int, *, width: int = 32, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        self.classes = classes
        self.down = nn.ModuleList(
            [
                _conv(channels, width, norm),
                _conv(width, 2 * width, norm),
                nn.Sequential(_conv(2 * width, 4 * width, norm), _conv(4 * width, 4 * width, norm)),
                _conv(4 * width, 8 * width, norm),
            ]
        )
        self.up = nn.ModuleList([_Up(scale * width, norm) for scale in (8, 4, 2)])
        self.head = nn.Conv2d(width, classes, kernel_size=1)
        self.half_head = nn.Sequential(
            nn.Conv2d(2 * width, classes, kernel_size=1), _doubling(classes, classes)
        )
        self.quarter_head = nn.Sequential(
            nn.Conv2d(4 * width, classes, kernel_size=1),
            _doubling(classes, classes),
            _doubling(classes, classes),
        )

    @property
    def bottleneck(self) -> nn.Module:
        """The encoder's deepest convolution."""
        return self.down[-1]

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The output of every size of the encoder; the last is (B, 8 width, H / 8, W / 8)."""
        return _encoded(images, self.down)

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of the main, the half-size and the quarter-size output, each (B, ``classes``, H,
        W)."""
        quarter, half, full = _decoded(images, self.down, self.up)
        return self.head(full), self.half_head(half), self.quarter_head(quarter)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The main output's logits."""
        *_, full = _decoded(images, self.down, self.up)
        return self.head(full)


class Judge(nn.Module):
    """A discriminator: inputs (B, ``channels``, H, W) to one logit each, (B, 1)."""

    def __init__(self, channels: int, *, width: int = 32, norm: Norm = "batch") -> None:
        super().__init__()
        widths = [channels, width, width, 2 * width, 2 * width]
        self.layers = nn.ModuleList(
            _conv(inputs, outputs, norm, stride=2) for inputs, outputs in pairwise(widths)
        )
        self.head = nn.Linear(2 * width, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = inputs
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden.mean(dim=(2, 3)))

    def moments(self, inputs: torch.Tensor) -> torch.Tensor:
        """Mean and standard deviation over positions of every channel of every layer, (B, F)."""
        found, hidden = [], inputs
        for layer in self.layers:
            hidden = layer(hidden)
            variance, mean = torch.var_mean(hidden, dim=(2, 3), correction=0)
            # The small number keeps the root's slope finite where a channel is dead.
            found += [mean, (variance + 1e-6).sqrt()]
        return torch.cat(found, dim=1)


class _Up(nn.Module):
    """Double the size and halve the channels, join the encoder's output, and mix both."""

    def __init__(self, inputs: int, norm: Norm) -> None:
        super().__init__()
        outputs = inputs // 2
        self.enlarge = nn.Sequential(
            _doubling(inputs, inputs, bias=norm == "none"), normalisation(norm, inputs), nn.ReLU()
        )
        self.mix = _conv(inputs + outputs, outputs, norm)

    def forward(self, images: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.mix(torch.cat([self.enlarge(images), skip], dim=1))


def _conv(inputs: int, outputs: int, norm: Norm, stride: int = 1) -> nn.Sequential:
    # A normalisation's shift makes the convolution's bias redundant.
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=norm == "none")
    return nn.Sequential(conv, normalisation(norm, outputs), nn.ReLU())


def _doubling(inputs: int, outputs: int, bias: bool = True) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1, bias=bias)


def _encoded(images: torch.Tensor, down: nn.ModuleList) -> list[torch.Tensor]:
    """The output of every size of the encoder, the full size first."""
    found, hidden = [], images
    for index, block in enumerate(down):
        hidden = block(F.max_pool2d(hidden, kernel_size=2) if index else hidden)
        found.append(hidden)
    return found


def _decoded(images: torch.Tensor, down: nn.ModuleList, up: nn.ModuleList) -> list[torch.Tensor]:
    """The output of every size of the decoder, the full size last."""
    *skips, hidden = _encoded(images, down)
    found = []
    for block, skip in zip(up, reversed(skips), strict=True):
        hidden = block(hidden, skip)
        found.append(hidden)
    return found
