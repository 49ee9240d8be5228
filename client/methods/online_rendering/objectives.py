"""What renderer, segmentor and discriminators are shown and minimise (section 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fedshift.client.contract.method import StatisticsBank
from fedshift.client.losses import dice_ce

View = Literal["appearance", "structure", "pair"]
"""What a discriminator judges: an image, its masks, or both."""

AUXILIARY = (1.0, 0.8, 0.4)
"""Weights of the segmentor's outputs: main, half size, quarter size."""


def hybrid_loss(outputs: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Dice + cross-entropy of the segmentor's outputs (main, half, quarter), weighted; a scalar."""
    losses = [w * dice_ce(out, labels) for w, out in zip(AUXILIARY, outputs, strict=True)]
    return torch.stack(losses).sum()


def rendering_loss(outputs: Sequence[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Eq. 1 with both weights 1 and means over pixels: the L1 distance of ``images`` to the
    renderer's main output plus that to its auxiliary one; a scalar."""
    return torch.stack([F.l1_loss(output.float(), images) for output in outputs]).sum()


def pool(bank: StatisticsBank) -> dict[str, torch.Tensor]:
    """The sites' published means over their rendered training images, as the mean over all images.

    For every discriminator ``judge_VIEW``: ``.logit`` and ``.logit_square`` (1,), the mean of its
    logit and of its square; for ``reals=statistics`` ``.moments`` and ``.moments_square`` (F,) of
    :meth:`Judge.moments`; for ``reals=stale_gradient`` ``.gradient`` (P,), the gradient of
    -E log D(real) by its parameters, flattened. Empty when no site published.
    """
    shares = {site: float(kept["images"][0]) for site, kept in bank.items() if "images" in kept}
    pooled: dict[str, np.ndarray] = {}
    for site, images in sorted(shares.items()):
        for name, mean in bank[site].items():
            if name != "images":
                part = mean.astype(np.float64) * (images / sum(shares.values()))
                pooled[name] = pooled.get(name, 0.0) + part
    return {name: torch.from_numpy(np.asarray(mean, np.float32)) for name, mean in pooled.items()}


def spread_of(known: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The standard deviation over S', from the means of a value and of its square."""
    variance = known[f"{name}_square"] - known[name].square()
    # A feature that never varies has no scale; the floor keeps its deviation finite.
    return variance.clamp(min=1e-6).sqrt()


def judge_of(view: View) -> str:
    """The name of the discriminator of ``view``."""
    return f"judge_{view}"


def shown_to(view: View, images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """What a discriminator sees of images (B, c, H, W) and masks (B, C - 1, H, W)."""
    if view == "appearance":
        return images
    soft = F.avg_pool2d(maps, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    return soft if view == "structure" else torch.cat([images, soft], dim=1)


def generated_for(
    view: View, renderer: nn.Module, segmenter: nn.Module, images: torch.Tensor
) -> torch.Tensor:
    """What a discriminator sees of ``images`` rendered and segmented."""
    rendered = renderer(images)
    if view == "appearance":
        return rendered
    return shown_to(view, rendered, segmenter(rendered).float().softmax(dim=1)[:, 1:])


def maps_of(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Labels (B, H, W) as one mask a structure, (B, classes - 1, H, W) float32."""
    structures = torch.arange(1, classes, device=labels.device)
    return (labels.unsqueeze(1) == structures.view(1, -1, 1, 1)).float()


def logits_of(
    judge: nn.Module, real: torch.Tensor, generated: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of both, judged as one batch."""
    real_logits, logits = judge(torch.cat([real, generated])).split([len(real), len(generated)])
    return real_logits, logits
