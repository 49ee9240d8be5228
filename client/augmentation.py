"""Random changes to training batches, on the device where the batch is.

The parameters of every image are drawn on the CPU from an explicit generator, so that a CPU and a
GPU run see the same augmentations. By default only a mild affine change is made: a strong change of
appearance hides the very shift between vendors that a federation measures, so all else is off
unless asked for.

``fbp`` is FBPAug of Saparov et al., "Zero-Shot Domain Adaptation in CT Segmentation by Filtered
Back Projection Augmentation", DART 2021: a slice is projected and reconstructed with a random
convolution kernel (section 2.1). ``gamma`` and ``windowing`` are what it is compared with (section
2.2). What the paper leaves open is chosen as follows: half of the slices are changed, and of these
half sharpened and half smoothed (the authors' code); as many angles as pixels a side (their code's
default; it trains with half as many); pixel values are taken to be linear in Hounsfield units;
kernels come before the affine change, as the scanner comes before the resampling; and pixels
outside the inscribed circle, which no reconstruction reaches, stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from fedshift import UserError
from fedshift.client.contract.task import Warp
from fedshift.protocol.settings import setting
from fedshift.sites.tomography import inside_circle, tomograph

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

SHARPEN = ((10.0, 40.0), (1.0, 4.0))
SMOOTH = ((-1.0, 0.0), (0.1, 1.0))
"""The ranges of ``a`` and ``b`` of the kernels (Saparov et al., section 2.2)."""
HU_RANGE = (-1000.0, 3000.0)
"""Hounsfield units are cut to these before the projection (at air) and after the reconstruction."""
WINDOW_CENTRE_HU = (-700.0, -500.0)
WINDOW_WIDTH_HU = (1300.0, 1700.0)
"""The random windows' ranges (Saparov et al., section 2.2)."""


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
    * ``fbp``: the share of the slices that are reconstructed with a random kernel; square CT only.
    * ``gamma``: the standard deviation of the logarithm of each slice's gamma exponent.
    * ``windowing``: the share of the slices that are cut to a random window of a CT of the lungs.
    * ``hu_at_0``, ``hu_at_1``: the Hounsfield units of pixel values 0 and 1, for ``fbp`` and
      ``windowing``. Projecting needs air to count as nothing, and images are normalised before.
    """

    NODE: ClassVar[str] = "augmentation"
    """Where its settings stand in a config."""

    affine: bool = True
    flip: bool = False
    intensity: float = setting(0.0, at_least=0.0, at_most=1.0)
    noise: float = setting(0.0, at_least=0.0)
    fbp: float = setting(0.0, at_least=0.0, at_most=1.0)
    gamma: float = setting(0.0, at_least=0.0)
    windowing: float = setting(0.0, at_least=0.0, at_most=1.0)
    hu_at_0: float = -1000.0
    hu_at_1: float = 100.0

    def __post_init__(self) -> None:
        """Raise :class:`fedshift.UserError` unless pixel values rise with Hounsfield units."""
        if self.hu_at_1 <= self.hu_at_0:
            raise UserError(
                f"augmentation.hu_at_1={self.hu_at_1:g} must be above "
                f"hu_at_0={self.hu_at_0:g}: they are the Hounsfield units of pixel values 1 and 0"
            )

    def __call__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator,
        warp: Warp,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return changed ``images`` (B, C, H, W) float32 and ``labels`` (B, ...), which follow a
        change of the geometry by ``warp``.

        ``generator`` is a CPU generator. The arguments are not written to.
        Raises :class:`fedshift.UserError` when ``fbp`` meets slices that are not square.
        """
        if self.fbp:
            images = self._reconstruct(images, generator)
        if self.affine or self.flip:
            theta = self._theta(images, generator)
            grid = F.affine_grid(theta, list(images.shape), align_corners=False)
            # Border padding repeats image and label alike, so they still agree outside the frame.
            labels = warp(labels, theta, images.shape)
            images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        if self.intensity:
            images = _change_intensity(images, self.intensity, generator)
        if self.noise:
            level = torch.rand(len(images), 1, 1, 1, generator=generator) * self.noise
            field = (level * torch.randn(images.shape, generator=generator)).to(images.device)
            images = images + field * _spread(images)
        if self.gamma:
            images = _bend(images, self.gamma * torch.randn(len(images), generator=generator))
        if self.windowing:
            images = self._cut(images, generator)
        return images, labels

    def _theta(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One random affine map a slice, (B, 2, 3), from the new grid to the old one."""
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
        return theta.to(images.device)

    def _reconstruct(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Project a random ``fbp`` of the slices and reconstruct each with a kernel of its own."""
        count, _, height, width = images.shape
        if height != width:
            raise UserError(
                f"augmentation=fbp needs square slices, not {height} x {width}; set "
                "augmentation.fbp=0"
            )
        chance, kind, place_a, place_b = torch.rand(4, count, generator=generator)
        a, b = (
            torch.where(kind < 0.5, _within(sharpen, place), _within(smooth, place))
            for sharpen, smooth, place in zip(SHARPEN, SMOOTH, (place_a, place_b), strict=True)
        )
        chosen = torch.nonzero(chance < self.fbp).squeeze(1)
        if not len(chosen):
            return images
        scanner = tomograph(height, height, images.device)
        # In units of water's attenuation: 0 is air, 1 is water.
        low, high = (1 + hu / 1000 for hu in HU_RANGE)
        air, one = 1 + self.hu_at_0 / 1000, (self.hu_at_1 - self.hu_at_0) / 1000
        where = chosen.to(images.device)
        before = images[where, 0]
        sinograms = scanner.project((air + one * before).clamp(min=low))
        after = scanner.reconstruct(sinograms, a[chosen], b[chosen]).clamp(low, high)
        seen = torch.from_numpy(inside_circle(height)).to(images.device)
        changed = torch.where(seen, (after - air) / one, before)
        return images.index_copy(0, where, changed.unsqueeze(1))

    def _cut(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Cut a random ``windowing`` of the slices to a window of its own."""
        chance, centre, width = torch.rand(3, len(images), generator=generator)
        middle, half = _within(WINDOW_CENTRE_HU, centre), _within(WINDOW_WIDTH_HU, width) / 2
        low, high = (
            (((middle + side * half) - self.hu_at_0) / (self.hu_at_1 - self.hu_at_0))
            .where(chance < self.windowing, side * torch.inf)
            .view(-1, 1, 1, 1)
            .to(images.device)
            for side in (-1, 1)
        )
        return images.clamp(low, high)


def _change_intensity(
    images: torch.Tensor, strength: float, generator: torch.Generator
) -> torch.Tensor:
    """Change contrast, brightness, gamma and sharpness of each slice, whatever its value range."""
    draws = _uniform(4, len(images), generator).to(images.device)
    contrast, brightness, gamma, blur = (strength * draws).view(4, -1, 1, 1, 1)
    images = _bend(_blur(images, BLUR_PX * blur.abs()), GAMMA * gamma)
    mean = images.mean((1, 2, 3), keepdim=True)
    offset = BRIGHTNESS * brightness * _spread(images)
    return (images - mean) * torch.exp(CONTRAST * contrast) + mean + offset


def _bend(images: torch.Tensor, log_gamma: torch.Tensor) -> torch.Tensor:
    """Raise each slice (B, 1, H, W), scaled to 0..1 by its own range, to the power of its gamma."""
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    # A slice of one value has no range: dividing by one keeps it as it is.
    span = torch.where(high > low, high - low, torch.ones_like(high))
    exponent = torch.exp(log_gamma).view(-1, 1, 1, 1).to(images.device)
    return low + span * ((images - low) / span).clamp(min=0) ** exponent


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


def _within(limits: tuple[float, float], place: torch.Tensor) -> torch.Tensor:
    """``place``, from 0 to 1, between two limits."""
    return limits[0] + (limits[1] - limits[0]) * place


def _uniform(rows: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform draws in [-1, 1), (``rows``, ``count``)."""
    return 2 * torch.rand(rows, count, generator=generator) - 1


def warp_mask(labels: torch.Tensor, theta: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Masks (B, H, W) uint8 sampled at the nearest pixel of the affine maps ``theta`` (B, 2, 3), as
    :class:`~fedshift.client.contract.task.Warp`; the border repeats."""
    grid = F.affine_grid(theta, list(size), align_corners=False)
    masks = labels.unsqueeze(1).to(grid.dtype)
    warped = F.grid_sample(masks, grid, mode="nearest", padding_mode="border", align_corners=False)
    return warped.squeeze(1).to(labels.dtype)
