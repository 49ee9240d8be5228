"""DRAI: images generated from content and style codes that are kept apart.

Havaei et al., "Conditional Generation of Medical Images via Disentangled Adversarial Inference",
2021. Two encoders infer an image's content code c, what a condition t describes, and its style code
z, everything else; a generator makes images from codes; and four discriminators, gradient reversal
and a self-supervised loss make the two codes independent (Eq. 2). DAI is the same without the
``constraints``.

docs/methods/drai.md has the federated form. In short: encoders, generator and code predictors are
averaged; discriminators, whose inputs are the site's own images, stay; and sites publish the means
and covariances of their codes, so that each can make its images look like another's.

Corrected: CIFC's first hybrid (:mod:`fedshift.client.methods.drai.disentangling`).

Left open by the paper, or not possible as printed, and chosen here:

* layers and code sizes (:mod:`fedshift.client.methods.drai.networks`);
* the condition of a slice: for each structure, absent or one of ``size_bins`` sizes, one-hot, from
  its label, as the paper's five bins of nodule size. A size is the side of the square of the same
  area as a share of the image's side (:func:`condition`). A slice without label has no condition:
  D_{x,t} and E_phi are not trained on it, and its c is drawn from the prior N(0, I), which is p(c)
  of Eq. 1;
* a slice with the wrong condition (x-bar) is another slice of the batch whose condition differs;
* V_self (Eq. 7) has no lower bound. The distance between the style codes counts up to
  :data:`~fedshift.client.methods.drai.dual_inference.MARGIN`, that of two independent draws of
  the prior. The loss is on the posteriors' means: draws from a posterior that ignores the image are
  that far apart too;
* V_GRL (Eq. 3): the gradient is reversed into the code that predicts, as in Fig. 5b; the predicted
  code is held fixed. Through it the encoders could also raise the error by larger codes, which
  shares no less information;
* L1 norms are means over components and pixels, and KL terms means over components. ``cycle`` and
  ``kl`` weigh the image cycle and the KL terms; both are 1 in the paper;
* the transformed copy of a batch is trained on with and without constraints, so that both see the
  same images. Random flips and crops as augmentation are left out: flips are transformations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import nn

from fedshift import Tellable, UserError, derive_seed
from fedshift.client.contract.illustrations import Illustration
from fedshift.client.contract.method import (
    AVERAGED,
    BROADCAST,
    KEPT,
    Budget,
    FitReport,
    Networks,
    Participation,
    Scene,
    Sharing,
    StatisticsBank,
)
from fedshift.client.contract.task import Task, Warp
from fedshift.client.descent import Descent
from fedshift.client.gan import is_collapsed
from fedshift.client.methods.base import Segmenting
from fedshift.client.methods.drai.codes import Gaussian, draw, gaussians, pooled
from fedshift.client.methods.drai.conditions import ConditionedSlices
from fedshift.client.methods.drai.content_preserving import Transform, change
from fedshift.client.methods.drai.disentangling import Codes, cross_image_consistency
from fedshift.client.methods.drai.dual_inference import (
    Constraint,
    judges_loss,
    play,
    players_losses,
)
from fedshift.client.methods.drai.networks import (
    CodePredictor,
    ConditionEncoder,
    ImageEncoder,
    ImageGenerator,
    PairDiscriminator,
)
from fedshift.client.methods.drai.pictures import pictures
from fedshift.client.networks.frozen import held
from fedshift.client.networks.halving import check_halvings
from fedshift.client.phases import Phases
from fedshift.client.slices import Slices
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.client.training import predict_slices
from fedshift.protocol.settings import setting
from fedshift.sites.types import SiteData

PREDICTORS = ("style_from_content", "content_from_style")
"""F_z and F_c."""
PLAYERS = ("style_encoder", "content_encoder", "condition_encoder", "generator", *PREDICTORS)
JUDGES = ("judge_image", "judge_condition", "judge_style", "judge_content")
"""D_x, D_{x,t}, D_{x,z} and D_{x,c}."""
NEED_CONDITIONS = frozenset({"condition_encoder", "judge_condition"})

BETAS = (0.5, 0.999)
"""Adam's, of players and judges."""
SAMPLES = 4
"""Generated images a real one where their features are compared."""


@dataclass(frozen=True)
class DRAI(Segmenting):
    """Train the inference and the generator in the first ``generation_rounds`` rounds, and the
    segmentation with their help in the rest.

    ``constraints`` are DRAI's additions to DAI: ``information`` (gradient reversal), ``self``
    (attract and repel) and ``code_cycle``. ``transform`` is what changes style only.

    ``use=hybrids`` trains the segmentation on slices in the styles of all sites, with the masks of
    their content; ``use=content`` trains and predicts on slices whose own style is taken out. Both
    are made by :meth:`restyle`.
    """

    tasks = frozenset({Segmentation})
    participation = Participation.ALL
    adapts = True

    use: Literal["hybrids", "content"] = "hybrids"
    hybrids: float = setting(0.5, at_least=0, at_most=1)
    generation_rounds: int = setting(6, at_least=1)
    constraints: tuple[Constraint, ...] = ("information", "self", "code_cycle")
    transform: Transform = "vendor"
    style_encoder: Literal["shared", "kept"] = "shared"
    style: int = setting(4, at_least=1)
    content: int = setting(16, at_least=1)
    generator_width: int = setting(12, at_least=1)
    halvings: int = setting(3, at_least=1, at_most=8)
    size_bins: int = setting(5, at_least=1)
    largest_size: float = setting(0.4, at_least=0.01, at_most=1)
    generator_batch: int = setting(8, at_least=2)
    generator_lr: float = setting(2e-3, at_least=0)
    judge_lr: float = setting(5e-4, at_least=0)
    cycle: float = setting(50.0, at_least=0)
    kl: float = setting(0.1, at_least=0)

    def drawn(self, steps: int) -> int:
        """A batch a step, of the sub-networks that have the smaller ones."""
        return steps * min(self.batch, self.generator_batch)

    def networks(self, task: Task) -> Networks:
        """Raises :class:`fedshift.UserError` when the grid cannot be halved often enough, or the
        settings contradict each other."""
        key = "method.halvings"
        check_halvings(task.size, self.halvings, f"{key}={self.halvings}", key)
        if self.use == "content" and self.style_encoder == "kept":
            raise UserError(
                "method.use=content takes the style out of every image that is predicted, and a "
                "site that trains nothing has no style encoder of its own: set "
                "method.style_encoder=shared"
            )
        shape = (task.size, self.generator_width, self.halvings)
        hidden = 4 * self.generator_width
        conditions = (self.size_bins + 1) * len(task.parts)
        channels = task.in_channels
        return {
            "segmenter": self.segmenter(task),
            "style_encoder": ImageEncoder(channels, *shape, self.style),
            "content_encoder": ImageEncoder(channels, *shape, self.content),
            "condition_encoder": ConditionEncoder(conditions, hidden, self.content),
            "generator": ImageGenerator(channels, *shape, self.style, self.content),
            "style_from_content": CodePredictor(self.content, hidden, self.style),
            "content_from_style": CodePredictor(self.style, hidden, self.content),
            "judge_image": PairDiscriminator(channels, *shape),
            "judge_condition": PairDiscriminator(channels, *shape, conditions),
            "judge_style": PairDiscriminator(channels, *shape, self.style),
            "judge_content": PairDiscriminator(channels, *shape, self.content),
        }

    def sharing(self, task: Task) -> dict[str, Sharing]:
        # Sites without labels use these and do not train them.
        labelled = BROADCAST if task.unlabelled else AVERAGED
        return {
            "segmenter": labelled,
            **dict.fromkeys(PLAYERS, AVERAGED),
            "condition_encoder": labelled,
            "style_encoder": AVERAGED if self.style_encoder == "shared" else KEPT,
            **dict.fromkeys(JUDGES, KEPT),
        }

    @property
    def _phases(self) -> Phases:
        return Phases({"generation": self.generation_rounds, "segmentation": None})

    def bound_to_rounds(self, rounds: int) -> str:
        return self._phases.bound(rounds)

    def fit(
        self, site: SiteData, nets: Networks, bank: StatisticsBank, budget: Budget
    ) -> FitReport:
        """Train what the round is for; publish moments as the networks it was sent see them.

        Raises :class:`fedshift.UserError` when the run is too short, or training diverged or
        collapsed.
        """
        self._phases.check(budget.rounds)
        for net in nets.values():
            net.to(budget.device)
        slices = ConditionedSlices(site, self.size_bins, self.largest_size)
        published = self._moments(slices, nets, budget)
        if self._phases.of(budget.round) == "generation":
            report = self._generate(slices, nets, budget)
        else:
            measured = self._measure(site, nets, bank, budget) | pooled(bank)
            styles = gaussians({**bank, site.name: published}, "style")
            restyling = _Restyling(self, nets, styles)
            report = self.train_segmenter(site, nets, restyling, budget)
            report.metrics |= measured
        # What untrained encoders call a style is none.
        if budget.round > 1:
            report.statistics, report.summarised = published, len(slices)
        return report

    def _generate(self, slices: ConditionedSlices, nets: Networks, budget: Budget) -> FitReport:
        """Adversarial training: each step one of the discriminators, then one of all else."""
        device = budget.device
        for net in nets.values():
            net.train()
        players = [name for name in PLAYERS if self._trains(name, slices)]
        judges = [name for name in JUDGES if self._trains(name, slices)]
        descent = partial(Descent, betas=BETAS, amp=budget.amp)
        judging = descent(*(nets[name] for name in judges), lr=self.judge_lr)
        playing = descent(
            *(nets[name] for name in players),
            lr=self.generator_lr,
            penalty=partial(budget.step.penalty, nets),
        )
        generator = torch.Generator().manual_seed(derive_seed(budget.seed, "codes"))
        seed = derive_seed(budget.seed, "generation batches")
        for batch in slices.batches(self.generator_batch, budget.steps, seed, device):
            doubled = batch.with_copy(change(batch.images, self.transform, generator))
            with playing.autocast():
                game = play(doubled, nets, generator)
                judged = judges_loss(game.detached(), nets)
            judging.step({"judges": judged})
            with held(*(nets[name] for name in judges)):
                with playing.autocast():
                    losses = players_losses(
                        game, nets, self.constraints, cycle=self.cycle, kl=self.kl
                    )
                playing.step(losses)
        diverged = (
            f"the generator's training diverged in round {budget.round}: lower "
            f"method.generator_lr (now {self.generator_lr:g}) and method.judge_lr (now "
            f"{self.judge_lr:g})"
        )
        metrics = playing.finished(diverged) | judging.finished(diverged)
        if budget.round == self.generation_rounds:
            self._check_variety(slices, nets, budget)
        return FitReport(dict.fromkeys([*players, *judges], len(slices)), metrics)

    def _check_variety(self, slices: ConditionedSlices, nets: Networks, budget: Budget) -> None:
        """Raise :class:`fedshift.UserError` when all generated images are nearly the same."""
        generator = torch.Generator().manual_seed(derive_seed(budget.seed, "variety"))
        _evaluate(nets)
        with torch.no_grad():
            batch = next(slices.once(budget.device))
            if is_collapsed(play(batch, nets, generator).generated, batch.images):
                raise Tellable(
                    f"the generator collapsed: by round {budget.round} its images hardly differ; "
                    "train it longer (method.generation_rounds, local_steps), or lower "
                    f"method.generator_lr (now {self.generator_lr:g})"
                )

    def _trains(self, name: str, slices: ConditionedSlices) -> bool:
        if name in PREDICTORS:
            return "information" in self.constraints
        return name not in NEED_CONDITIONS or slices.conditioned

    def restyle(self, nets: Networks, images: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
        """``images`` (B, 1, H, W) with their own style exchanged for ``styles`` (B, style): the
        change that the generator makes of exchanging the code, x + G(z, c^) - G(z^, c^).

        It is the paper's hybrid G(z, c^) plus what the generator leaves out of x, and so is x
        itself where the style is its own. A content code cannot place an edge to a pixel, which a
        mask needs; here the edges are those of x.
        """
        generator = nets["generator"]
        with torch.no_grad():
            own, content = self.codes(nets, images)
            return images + (generator(styles, content) - generator(own, content))

    def codes(self, nets: Networks, images: torch.Tensor) -> Codes:
        """The style and the content code of ``images`` (B, C, H, W), (B, style) and (B, content):
        the means of their posteriors."""
        return nets["style_encoder"](images).mean, nets["content_encoder"](images).mean

    def _moments(
        self, slices: ConditionedSlices, nets: Networks, budget: Budget
    ) -> dict[str, np.ndarray]:
        """Means and covariances of the site's codes and, once there is a task encoder, of its
        features of the site's images and of generated ones; and of how many images."""
        generator = torch.Generator().manual_seed(derive_seed(budget.seed, "moments"))
        found: dict[str, list[torch.Tensor]] = {"style": [], "content": []}
        if budget.round > self.generation_rounds + 1:
            found |= {"real": [], "generated": []}
        _evaluate(nets)
        with torch.no_grad():
            for batch in slices.once(budget.device):
                style, content = self.codes(nets, batch.images)
                found["style"].append(style)
                found["content"].append(content)
                if "real" in found:
                    found["real"].append(self.features(nets, batch.images))
                    for _ in range(SAMPLES):
                        images = play(batch, nets, generator).generated
                        found["generated"].append(self.features(nets, images))
        moments = {"count": np.array([float(len(slices))])}
        for name, parts in found.items():
            values = torch.cat(parts).double().cpu().numpy()
            moments[f"{name}_mean"] = values.mean(axis=0)
            moments[f"{name}_covariance"] = np.cov(values, rowvar=False, bias=True).reshape(
                values.shape[1], values.shape[1]
            )
        return moments

    def _measure(
        self, site: SiteData, nets: Networks, bank: StatisticsBank, budget: Budget
    ) -> dict[str, float]:
        """How well content and style are kept apart, on the validation images (the training images
        of a site with fewer than two): each paired with another of them and, as far as other sites
        published codes, with codes drawn from theirs."""
        slices = Slices(site.splits["val"])
        if len(slices) < 2:
            slices = Slices(site.splits["train"])
        count = len(slices)
        if count < 2:
            return {}
        _evaluate(nets)
        with torch.no_grad():
            pixels = slices.stack(range(count)).to(budget.device)
            codes = self.codes(nets, pixels)
            reconstructed = nets["generator"](*codes)
            consistency = partial(
                cross_image_consistency, partial(self.codes, nets), nets["generator"], codes
            )
            # Neighbours are slices of one subject: pair with those half the list away.
            style, content = (code.roll(count // 2, dims=0) for code in codes)
            within = consistency((style, content))
            metrics = {
                "cifc": within.error,
                "cifc_relative": within.relative,
                "reconstruction": float((reconstructed - pixels).abs().mean()),
                "style_variance": float(codes[0].var(dim=0).mean()),
                "content_variance": float(codes[1].var(dim=0).mean()),
            }
            others = {name: found for name, found in bank.items() if name != site.name and found}
            if others:
                generator = torch.Generator().manual_seed(derive_seed(budget.seed, "pairs"))
                style, content = (
                    draw(gaussians(others, code), count, generator).to(budget.device)
                    for code in ("style", "content")
                )
                across = consistency((style, content))
                metrics |= {
                    "cifc_across": across.error,
                    "cifc_across_relative": across.relative,
                }
        # The share of no spread at all is none.
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def predict(
        self, nets: Networks, images: Sequence[np.ndarray] | np.ndarray, scene: Scene
    ) -> np.ndarray:
        net = nets["segmenter"]
        if self.use == "content":
            net = _InNeutralStyle(self, nets)
        return predict_slices(net, images, scene)

    def illustrate(self, site: SiteData, nets: Networks, scene: Scene) -> list[Illustration]:
        """As :func:`fedshift.client.methods.drai.pictures.pictures`."""
        for net in nets.values():
            net.to(scene.device)
        _evaluate(nets)
        codes, restyle = partial(self.codes, nets), partial(self.restyle, nets)
        return pictures(site, scene, nets["generator"], codes, restyle)


class _InNeutralStyle(nn.Module):
    """The segmentation of images whose style is exchanged for the mean of the prior, 0."""

    def __init__(self, method: DRAI, nets: Networks) -> None:
        super().__init__()
        self.method = method
        self.nets = nn.ModuleDict(nets)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        nets = dict(self.nets)
        neutral = torch.zeros(len(images), self.method.style, device=images.device)
        logits: torch.Tensor = nets["segmenter"](self.method.restyle(nets, images, neutral))
        return logits


@dataclass(frozen=True)
class _Restyling:
    """What is done to a training batch of the segmentation: styles exchanged, then the usual
    augmentation. ``sites`` are the style distributions to draw from."""

    method: DRAI
    nets: Networks
    sites: Sequence[Gaussian]

    def __call__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator,
        warp: Warp,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.method.use == "content":
            styles = torch.zeros(len(images), self.method.style, device=images.device)
            images = self.method.restyle(self.nets, images, styles)
        elif count := round(self.method.hybrids * len(images)):
            # Batches come in random order: the first slices are any.
            styles = draw(self.sites, count, generator).to(images.device)
            restyled = self.method.restyle(self.nets, images[:count], styles)
            images = torch.cat([restyled, images[count:]])
        return self.method.augmentation(images, labels, generator, warp)


def _evaluate(nets: Networks) -> None:
    for net in nets.values():
        net.eval()
