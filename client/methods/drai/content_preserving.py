"""Random changes that leave an image's content as it is: what style is, is what they change.

Havaei et al., "Conditional Generation of Medical Images via Disentangled Adversarial Inference",
2021, appendix A.2 and B.1: rotations by 90, 180 and 270 degrees and mirroring both ways, so that
style is orientation. ``vendor`` is ours: what differs between scanners changes instead (contrast,
brightness, gamma, blur, noise and a smooth bias field), so that style is a vendor's look.

Parameters are drawn on the CPU from an explicit generator.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from fedshift import Tellable
from fedshift.client.augmentation import Augmentation, warp_mask

Transform = Literal["paper", "vendor"]

BIAS = 0.3
"""The bias field's largest value, as the natural logarithm of its factor."""
BIAS_KNOTS = 3
"""Random values a side that the bias field runs smoothly through."""

_APPEARANCE = Augmentation(affine=False, intensity=1.0, noise=0.2)


def change(images: torch.Tensor, kind: Transform, generator: torch.Generator) -> torch.Tensor:
    """Return a changed copy of ``images`` (B, C, H, W), each changed in its own way.

    Raises :class:`fedshift.UserError` for ``paper`` when the images are not square.
    """
    if kind == "paper":
        return _turn(images, generator)
    knots = torch.rand(len(images), 1, BIAS_KNOTS, BIAS_KNOTS, generator=generator)
    field = F.interpolate(knots, images.shape[-2:], mode="bicubic", align_corners=True)
    biased = images * torch.exp(BIAS * (2 * field - 1)).to(images.device)
    no_labels = torch.zeros(len(images), 0)
    return _APPEARANCE(biased, no_labels, generator, warp_mask)[0]


def _turn(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One of the five of each image, all equally often."""
    if images.shape[-1] != images.shape[-2]:
        raise Tellable(
            f"method.transform=paper turns images by 90 degrees, and these have "
            f"{images.shape[-2]} x {images.shape[-1]} pixels: set method.transform=vendor"
        )
    turned = [torch.rot90(images, quarter, dims=(2, 3)) for quarter in (1, 2, 3)]
    every = torch.stack([*turned, images.flip(2), images.flip(3)])
    chosen = torch.randint(len(every), (len(images),), generator=generator)
    return every[chosen.to(images.device), torch.arange(len(images), device=images.device)]
