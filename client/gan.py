"""Adversarial losses on a discriminator's logits, and signs of a failing game.

* ``bce``: Goodfellow et al., NeurIPS 2014. The discriminator maximises E log D(x) + E log(1 -
  D(G(z))); the generator uses the non-saturating form, minimising -E log D(G(z)).
* ``lsgan``: Mao et al., ICCV 2017, Eq. 9 (labels 0 and 1, with the halves).
* ``wgan_gp``: Gulrajani et al., NeurIPS 2017: without :func:`gradient_penalty`, which the caller
  adds to the discriminator's loss.
* ``relativistic``: Jolicoeur-Martineau, ICLR 2019, the relativistic average GAN (its section 4.3):
  each logit is judged against the mean logit of the other kind.

The first three are a sum of a term of real images and one of generated images, so that either can
be computed where its images are (:func:`real_loss`, :func:`fake_loss`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional as F

GanLoss = Literal["bce", "lsgan", "wgan_gp", "relativistic"]

COLLAPSED = 0.05
"""Generated images that vary less than this share of the real ones are a collapse."""


def real_loss(kind: GanLoss, logits: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss on the ``logits`` of real images, of any shape; a scalar."""
    match kind:
        case "bce":
            return F.softplus(-logits).mean()
        case "lsgan":
            return 0.5 * (logits - 1).square().mean()
        case "wgan_gp":
            return -logits.mean()
    raise ValueError(f"the {kind} loss has no term of real images alone")


def fake_loss(kind: GanLoss, logits: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss on the ``logits`` of generated images, of any shape; a scalar."""
    match kind:
        case "bce":
            return F.softplus(logits).mean()
        case "lsgan":
            return 0.5 * logits.square().mean()
        case "wgan_gp":
            return logits.mean()
    raise ValueError(f"the {kind} loss has no term of generated images alone")


def discriminator_loss(
    kind: GanLoss, real_logits: torch.Tensor, fake_logits: torch.Tensor
) -> torch.Tensor:
    """What the discriminator minimises; a scalar. The logits may have any shapes."""
    if kind == "relativistic":
        real, fake = real_logits - fake_logits.mean(), fake_logits - real_logits.mean()
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    return real_loss(kind, real_logits) + fake_loss(kind, fake_logits)


def generator_loss(
    kind: GanLoss, fake_logits: torch.Tensor, real_logits: torch.Tensor | None = None
) -> torch.Tensor:
    """What the generator minimises; a scalar. ``relativistic`` needs ``real_logits`` too."""
    match kind:
        case "bce":
            return F.softplus(-fake_logits).mean()
        case "lsgan":
            return 0.5 * (fake_logits - 1).square().mean()
        case "wgan_gp":
            return -fake_logits.mean()
        case "relativistic":
            if real_logits is None:
                raise ValueError("the relativistic loss needs the logits of real images")
            return discriminator_loss(kind, fake_logits, real_logits)
    raise ValueError(f"no adversarial loss is called {kind!r}")


def gradient_penalty(
    discriminator: Callable[[torch.Tensor], torch.Tensor],
    real: torch.Tensor,
    fake: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean of (||gradient|| - 1)^2 at random points between ``real`` and ``fake`` (B, ...); a
    scalar, which WGAN-GP weighs by 10.

    The gradient is that of an image's mean logit by the image. ``generator`` is a CPU generator.
    """
    share = torch.rand(len(real), generator=generator).to(real.device)
    share = share.view(-1, *[1] * (real.ndim - 1))
    between = torch.lerp(fake.detach(), real.detach(), share).requires_grad_()
    score = discriminator(between).flatten(1).mean(dim=1).sum()
    (gradient,) = torch.autograd.grad(score, between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


@torch.no_grad()
def is_collapsed(generated: torch.Tensor, real: torch.Tensor) -> bool:
    """Whether ``generated`` (B, ...) vary less than :data:`COLLAPSED` of what ``real`` do: from
    pixel to pixel, or, given two images or more, from image to image. A value that is not finite
    counts as collapsed."""
    spreads = [_within(generated) / _within(real).clamp(min=1e-12)]
    if min(len(generated), len(real)) > 1:
        spreads.append(_between(generated) / _between(real).clamp(min=1e-12))
    return not bool((torch.stack(spreads) >= COLLAPSED).all())


def _within(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).std(dim=1).mean()


def _between(images: torch.Tensor) -> torch.Tensor:
    return images.std(dim=0).mean()
