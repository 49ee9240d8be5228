"""Random changes to training batches, on the device where the batch is.

The parameters of every image are drawn on the CPU from an explicit generator, so that a CPU and a
GPU run see the same augmentations. By default only a mild affine change is made: a strong change of
appearance hides the very shift between vendors that a federation measures, so ``intensity`` and
``noise`` are options, off unless asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from fedshift.protocol.settings import setting

ROTATION = math.radians(15)
SCALE = 0.1
SHIFT = 0.1
"""The largest rotation (either way), relative scaling, and shift as a share of half the image."""

CONTRAST = 0.4
BRIGHTNESS = 0.5
GAMMA = 0.5
BLUR_PX = 1.0
"""The largest changes at ``intensity=1``: contrast and gamma as natural logarithms of their
factors, brightness in standard deviations of the image, the Gaussian blur's standard deviation in
pixels."""


@dataclass(frozen=True)
class Augmentation:
    """What is changed at random in a training slice.

    * ``affine``: rotation, scaling and shift, the same for image and label.
    * ``flip``: mirror left and right half of the time. Off by default: it moves organs to the wrong
      side, which is right for a symmetric structure such as the spinal cord only.
    * ``intensity``: 0 to 1, the strength of contrast, brightness, gamma and blur changes.
    * ``noise``: Gaussian noise, the paper's "polluted" U-Net (Yan et al., MICCAI 2019, section
      3.2, which gives neither kind nor level): each slice's standard deviation is uniform between
      0 and ``noise`` times the slice's own standard deviation.
    """

    affine: bool = True
    flip: bool = False
    intensity: float = setting(0.0, at_least=0.0, at_most=1.0)
    noise: float = setting(0.0, at_least=0.0)

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return changed ``images`` (B, 1, H, W) float32 and ``labels`` (B, H, W) uint8.

        ``generator`` is a CPU generator. The arguments are not written to.
        """
        if self.affine or self.flip:
            grid = self._grid(images, generator)
            # Border padding repeats image and label alike, so they still agree outside the frame.
            images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
            labels = F.grid_sample(
                labels.unsqueeze(1).to(grid.dtype),
                grid,
                mode="nearest",
                padding_mode="border",
                align_corners=False,
            )
            labels = labels.squeeze(1).to(torch.uint8)
        if self.intensity:
            images = _change_intensity(images, self.intensity, generator)
        if self.noise:
            level = torch.rand(len(images), 1, 1, 1, generator=generator) * self.noise
            field = (level * torch.randn(images.shape, generator=generator)).to(images.device)
            images = images + field * _spread(images)
        return images, labels

    def _grid(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The sampling positions (B, H, W, 2) of one random affine map a slice."""
        count, _, height, width = images.shape
        theta = torch.eye(2, 3).repeat(count, 1, 1)
        if self.affine:
            angle, scale, dx, dy = _uniform(4, count, generator)
            zoom = 1 + SCALE * scale
            cos, sin = torch.cos(ROTATION * angle) * zoom, torch.sin(ROTATION * angle) * zoom
            # Grid coordinates run from -1 to 1 on both axes: a rotation in pixels needs the aspect.
            aspect = height / width
            theta[:, 0] = torch.stack([cos, -sin * aspect, SHIFT * dx], dim=1)
            theta[:, 1] = torch.stack([sin / aspect, cos, SHIFT * dy], dim=1)
        if self.flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
            theta[:, :, 0] *= torch.where(mirrored, -1.0, 1.0)[:, None]
        size = [count, 1, height, width]
        return F.affine_grid(theta.to(images.device), size, align_corners=False)


def _change_intensity(
    images: torch.Tensor, strength: float, generator: torch.Generator
) -> torch.Tensor:
    """Change contrast, brightness, gamma and sharpness of each slice, whatever its value range."""
    draws = _uniform(4, len(images), generator).to(images.device)
    contrast, brightness, gamma, blur = (strength * draws).view(4, -1, 1, 1, 1)
    images = _blur(images, BLUR_PX * blur.abs())
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    # A slice of one value has no range: dividing by one keeps it as it is.
    span = torch.where(high > low, high - low, torch.ones_like(high))
    images = low + span * ((images - low) / span).clamp(min=0) ** torch.exp(GAMMA * gamma)
    mean = images.mean((1, 2, 3), keepdim=True)
    offset = BRIGHTNESS * brightness * _spread(images)
    return (images - mean) * torch.exp(CONTRAST * contrast) + mean + offset


def _blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of each slice (B, 1, H, W) with its own ``sigma`` (B, 1, 1, 1), in pixels."""
    radius = math.ceil(3 * BLUR_PX)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    # Far below a pixel the kernel is a single one; the floor keeps the division defined.
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=0.05)) ** 2)
    kernel = kernel / kernel.sum(-1, keepdim=True)
    # One channel a slice, so that one grouped convolution blurs each with its own kernel.
    rows = F.pad(images.transpose(0, 1), (radius, radius, radius, radius), mode="replicate")
    rows = F.conv2d(rows, kernel, groups=len(images))
    return F.conv2d(rows, kernel.transpose(2, 3), groups=len(images)).transpose(0, 1)


def _spread(images: torch.Tensor) -> torch.Tensor:
    """The standard deviation of each slice, (B, 1, 1, 1)."""
    return images.std((1, 2, 3), keepdim=True)


def _uniform(rows: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform draws in [-1, 1), (``rows``, ``count``)."""
    return 2 * torch.rand(rows, count, generator=generator) - 1
