"""A site's style as it travels: per-channel statistics at every scale, and mean Gram matrices.

A style is written as one vector, its code: for each scale, finest first, the means of the style
feature's channels, then the logarithms of their standard deviations. Through AdaIN that is all a
decoder sees of a style image. No pixel and no map of pixels can be in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedshift.client.methods.style_transfer.networks import Style, StyleEncoder
from fedshift.client.methods.style_transfer.style import channel_statistics


@dataclass(frozen=True)
class SiteStyle:
    """The distribution of a site's styles: over its images, the ``mean`` and standard ``deviation``
    (D,) of their codes, and the means of their Gram matrices, (C_i, C_i) for layer i of the
    extractor."""

    mean: torch.Tensor
    deviation: torch.Tensor
    grams: tuple[torch.Tensor, ...]

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """``count`` codes (count, D), normal with this mean and deviation, on the codes' device.
        ``generator`` is a CPU generator."""
        noise = torch.randn(count, len(self.mean), generator=generator)
        return self.mean + self.deviation * noise.to(self.mean.device)

    def to_bank(self) -> dict[str, np.ndarray]:
        """The statistics under the names they are published with."""
        grams = {f"gram_{layer}": gram for layer, gram in enumerate(self.grams)}
        found = {"style_mean": self.mean, "style_deviation": self.deviation, **grams}
        return {name: value.cpu().numpy() for name, value in found.items()}

    @classmethod
    def from_bank(cls, found: Mapping[str, np.ndarray], device: torch.device) -> SiteStyle:
        """Read what :meth:`to_bank` wrote."""
        tensors = {name: torch.tensor(value, device=device) for name, value in found.items()}
        mean, deviation = tensors.pop("style_mean"), tensors.pop("style_deviation")
        return cls(mean, deviation, tuple(tensors[f"gram_{n}"] for n in range(len(tensors))))


def code_of(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """The codes (B, D) of style features (B, C_i, H_i, W_i), finest scale first."""
    parts = []
    for feature in features:
        mean, deviation = channel_statistics(feature.float())
        parts += [mean, deviation.log()]
    return torch.cat(parts, dim=1)


def style_of(codes: torch.Tensor, channels: Sequence[int]) -> Style:
    """The channel means and deviations of ``codes`` (B, D), for scales of ``channels``."""
    parts = iter(codes.split([c for c in channels for _ in range(2)], dim=1))
    return [(mean, next(parts).exp()) for mean in parts]


def of_any(known: Sequence[SiteStyle], count: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` codes (count, D), each of a site drawn at random."""
    picks = torch.randint(len(known), (count,), generator=generator).tolist()
    return torch.cat([known[k].draw(1, generator) for k in picks])


def extrapolated(
    codes: torch.Tensor, centre: torch.Tensor, reach: float, generator: torch.Generator
) -> torch.Tensor:
    """Move each of ``codes`` (N, D) away from ``centre`` (D,), to between once and ``reach`` times
    its distance."""
    factor = 1 + (reach - 1) * torch.rand(len(codes), 1, generator=generator)
    return centre + factor.to(codes.device) * (codes - centre)


def prior_codes(
    encoder: StyleEncoder,
    latent: int,
    grid: tuple[int, int],
    device: torch.device,
    count: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """The codes (count, D) of style features made from z ~ N(0, I), on a grid of ``grid`` pixels
    (section 3.1)."""
    latents = [
        torch.randn(count, latent, *(side // 2**scale for side in grid), generator=generator)
        for scale in range(len(encoder.expand))
    ]
    with torch.no_grad():
        return code_of(encoder.features([z.to(device) for z in latents]))
