"""The objective of dual regularised adversarial inference, term by term.

Havaei et al., "Conditional Generation of Medical Images via Disentangled Adversarial Inference",
2021, Eqs. 1 to 3 and 7. Every adversarial term has the least-squares form (appendix B.1), with the
halves of Mao et al., ICCV 2017, Eq. 9. :mod:`fedshift.client.methods.drai` says what is corrected
and what is chosen where the paper leaves it open.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from fedshift.client.gan import discriminator_loss, generator_loss
from fedshift.client.methods.drai.reversal import reverse_gradient
from fedshift.client.networks.gaussian import DiagonalGaussian

Constraint = Literal["information", "self", "code_cycle"]
Losses = dict[str, torch.Tensor]
Inputs = tuple[torch.Tensor, ...]
"""What a discriminator is given: images, and codes or conditions."""

MARGIN = 2 / math.sqrt(math.pi)
"""The mean absolute difference of two independent draws of N(0, 1)."""


@dataclass(frozen=True)
class Batch:
    """``images`` (B, C, H, W), ``conditions`` (B, T), and the rows (K,) whose condition is
    ``known``; all on one device."""

    images: torch.Tensor
    conditions: torch.Tensor
    known: torch.Tensor

    def with_copy(self, copy: torch.Tensor) -> Batch:
        """Twice as many images: these, then ``copy`` of the same images with the same contents."""
        return Batch(
            torch.cat([self.images, copy]),
            torch.cat([self.conditions, self.conditions]),
            torch.cat([self.known, self.known + len(copy)]),
        )


@dataclass(frozen=True)
class Game:
    """What one batch, images and then their copies, makes the players do."""

    batch: Batch
    style: DiagonalGaussian
    """q(z|x) of the images."""
    content: DiagonalGaussian
    """q(c|x)."""
    styles: torch.Tensor
    """Draws z^ of ``style``."""
    contents: torch.Tensor
    """Draws c^ of ``content``."""
    condition: DiagonalGaussian | None
    """q(c|t) of the known conditions; None without any."""
    prior_styles: torch.Tensor
    """Draws z of N(0, I)."""
    prior_contents: torch.Tensor
    """Draws c of q(c|t), or of N(0, I) where the condition is not known."""
    generated: torch.Tensor
    """G_x(z, c)."""

    def detached(self) -> Game:
        """The same for the discriminators, whose loss must not reach the players."""
        names = ("styles", "contents", "prior_contents", "generated")
        return replace(self, **{name: getattr(self, name).detach() for name in names})


def play(batch: Batch, nets: Mapping[str, nn.Module], generator: torch.Generator) -> Game:
    """Infer the codes of ``batch`` and generate as many images; ``generator`` is a CPU one."""
    device = batch.images.device
    style, content = nets["style_encoder"](batch.images), nets["content_encoder"](batch.images)
    prior_styles, prior_contents = (
        torch.randn(posterior.mean.shape, generator=generator).to(device)
        for posterior in (style, content)
    )
    condition = None
    if len(batch.known):
        condition = nets["condition_encoder"](batch.conditions[batch.known])
        drawn = condition.sample(generator)
        prior_contents = prior_contents.index_copy(0, batch.known, drawn)
    return Game(
        batch,
        style,
        content,
        style.sample(generator),
        content.sample(generator),
        condition,
        prior_styles,
        prior_contents,
        nets["generator"](prior_styles, prior_contents),
    )


def judges_loss(game: Game, nets: Mapping[str, nn.Module]) -> torch.Tensor:
    """What the four discriminators minimise: V_t2i and V_dALI (Eq. 1); a scalar. ``game`` must be
    detached."""
    images = game.batch.images
    loss = _judged(nets["judge_image"], (images,), (game.generated,))
    loss = loss + _judged(nets["judge_style"], *_style_pairs(game))
    loss = loss + _judged(nets["judge_content"], *_content_pairs(game))
    known = game.batch.known
    if len(known):
        conditions = game.batch.conditions[known]
        rows, partners = mismatched(conditions)
        right, made, wrong = _logits(
            nets["judge_condition"],
            (images[known], conditions),
            (game.generated[known], conditions),
            (images[known][partners], conditions[rows]),
        )
        against = discriminator_loss("lsgan", right, made)
        if len(rows):
            # The mean of two losses: the real pairs count once, each kind of wrong pair half.
            against = 0.5 * (against + discriminator_loss("lsgan", right, wrong))
        loss = loss + against
    return loss


def players_losses(
    game: Game,
    nets: Mapping[str, nn.Module],
    constraints: Collection[Constraint],
    *,
    cycle: float,
    kl: float,
) -> Losses:
    """What encoders, generator and code predictors minimise together, by term; scalars.

    ``cycle`` and ``kl`` are weights. The discriminators are held fixed by the caller.
    """
    images, known = game.batch.images, game.batch.known
    losses = {
        "realism": generator_loss("lsgan", nets["judge_image"](game.generated).float()),
        # The discriminators' own loss with the roles exchanged: the encoder wants its pairs taken
        # for generated ones, the generator wants its pairs taken for inferred ones.
        "inference": _judged(nets["judge_style"], *reversed(_style_pairs(game)))
        + _judged(nets["judge_content"], *reversed(_content_pairs(game))),
        "image_cycle": cycle
        * F.l1_loss(nets["generator"](game.styles, game.contents).float(), images),
        "kl": kl * (_mean_kl(game.style) + _mean_kl(game.content)),
    }
    if game.condition is not None:
        pairs = game.generated[known], game.batch.conditions[known]
        losses["condition"] = 0.5 * generator_loss("lsgan", nets["judge_condition"](*pairs).float())
        losses["kl"] = losses["kl"] + kl * _mean_kl(game.condition)
    if "code_cycle" in constraints:
        losses["code_cycle"] = _code_cycle(game, nets)
    if "information" in constraints:
        losses["information"] = information_loss(
            game.styles, game.contents, nets["style_from_content"], nets["content_from_style"]
        )
    if "self" in constraints:
        losses["self"] = self_supervised_loss(game.style.mean, game.content.mean)
    return losses


def information_loss(
    styles: torch.Tensor, contents: torch.Tensor, f_z: nn.Module, f_c: nn.Module
) -> torch.Tensor:
    """V_GRL (Eq. 3) with its sign turned: the predictors F_z (content to style) and F_c (style to
    content) minimise it; through the reversal the codes they predict from are made to raise it."""
    style_error = F.l1_loss(f_z(reverse_gradient(contents)).float(), styles.detach())
    content_error = F.l1_loss(f_c(reverse_gradient(styles)).float(), contents.detach())
    return style_error + content_error


def self_supervised_loss(styles: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
    """V_self (Eq. 7) of codes (2B, ...), images before their copies: contents are drawn together,
    styles apart up to :data:`MARGIN`; a scalar of at least ``-MARGIN``."""
    attract, repel = (
        (first - second).abs().mean(dim=1) for first, second in (contents.chunk(2), styles.chunk(2))
    )
    return (attract - repel.clamp(max=MARGIN)).mean()


def mismatched(conditions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row of ``conditions`` (K, T) that has one, the next row that differs from it, in a
    circle: the rows and their partners, (M,) each with M at most K."""
    count = len(conditions)
    differs = (conditions[:, None] != conditions[None]).any(dim=2)
    steps = torch.arange(count, device=conditions.device)
    order = (steps[:, None] + steps) % count
    ordered = differs.gather(1, order)
    partners = order.gather(1, ordered.int().argmax(dim=1, keepdim=True)).squeeze(1)
    rows = ordered.any(dim=1).nonzero().squeeze(1)
    return rows, partners[rows]


def _style_pairs(game: Game) -> tuple[Inputs, Inputs]:
    return (game.batch.images, game.styles), (game.generated, game.prior_styles)


def _content_pairs(game: Game) -> tuple[Inputs, Inputs]:
    return (game.batch.images, game.contents), (game.generated, game.prior_contents)


def _judged(judge: nn.Module, real: Inputs, fake: Inputs) -> torch.Tensor:
    return discriminator_loss("lsgan", *_logits(judge, real, fake))


def _logits(judge: nn.Module, *groups: Inputs) -> tuple[torch.Tensor, ...]:
    """The logits of each group of images and codes, in one pass: nothing in a discriminator mixes
    its images, and on a CPU one large pass is quicker than several small ones."""
    logits = judge(*(torch.cat(parts) for parts in zip(*groups, strict=True))).float()
    return logits.split([len(group[0]) for group in groups])


def _code_cycle(game: Game, nets: Mapping[str, nn.Module]) -> torch.Tensor:
    """The codes that an image was generated from, inferred again."""
    style = nets["style_encoder"](game.generated).mean
    content = nets["content_encoder"](game.generated).mean
    return F.l1_loss(style, game.prior_styles) + F.l1_loss(content, game.prior_contents)


def _mean_kl(posterior: DiagonalGaussian) -> torch.Tensor:
    """The divergence from N(0, I), the mean over images and components."""
    return posterior.kl().mean() / posterior.mean.shape[1]
