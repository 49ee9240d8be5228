"""Variational style transfer: segmentation trained on slices in other sites' styles.

Hung & Galeotti, "Ultrasound Variational Style Transfer to Generate Images Beyond the Observed
Domain", 2021. A style encoder, a content encoder and a decoder (:mod:`~fedshift.client.networks.
style_nets`) render the content of one image in the style of another, or in a sampled style; a
segmentation network is then trained on rendered slices with the masks of their content.

docs/methods/style_transfer.md derives the federated form. In short: the decoder sees a style only
through the channel statistics of f_s at each scale (Eq. 2), and the style loss sees the style image
only through its Gram matrices (Eq. 4). So a site publishes the mean and deviation over its images
of the former and the mean of the latter, and others can train on, and render in, its style.

Corrected: Eq. 6 prints the divergence from N(0, I) as 1/2 (mu^2 / sigma^2 + ...); it is
1/2 (mu^2 + sigma^2 - log sigma^2 - 1).

Left open by the paper and chosen here:

* the norms of Eqs. 3 and 5: the mean over the entries of the squared difference. Squared, because
  then the loss towards a site's mean Gram matrix has the gradient of the mean loss towards its
  images' Gram matrices. ``distance=absolute`` is the other reading;
* the KL term's weight, of the mean over z's entries; what pre-training minimises (mean squared
  error, for the style encoder plus KL); that the encoders go on learning in joint training;
* a batch's content and style images are two independent permutations of the site's slices. With
  ``reconstruction`` above zero a part of the pairs are an image with itself, whose rendering is
  also compared with it pixel by pixel: few steps then suffice, and pre-training is not needed.
  The paper has no such term;
* "beyond the observed domain": section 3.2 draws z from N(0, I), which is ``styles=prior``. The
  statistics of a large map of independent draws hardly vary, so all such styles are nearly one.
  ``styles=beyond`` draws the statistics instead, and carries them outside of what was published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import torch
from torch.nn import functional as F

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
from fedshift.client.methods.base import Segmenting
from fedshift.client.methods.style_transfer.extractor import (
    FIXED_WIDTHS,
    Extractor,
    fixed_extractor,
    vgg_extractor,
)
from fedshift.client.methods.style_transfer.networks import (
    Encoder,
    StyleEncoder,
    TranslatorNorm,
    UNetDecoder,
    render,
    widths,
)
from fedshift.client.methods.style_transfer.pictures import pictures
from fedshift.client.methods.style_transfer.style import gram_matrix
from fedshift.client.methods.style_transfer.style_bank import (
    SiteStyle,
    code_of,
    extrapolated,
    of_any,
    prior_codes,
    style_of,
)
from fedshift.client.networks.frozen import frozen
from fedshift.client.networks.gaussian import DiagonalGaussian
from fedshift.client.networks.halving import check_halvings
from fedshift.client.networks.lv_unet import LVUNet
from fedshift.client.phases import Phases
from fedshift.client.slices import Slices
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.client.training import predict_slices
from fedshift.protocol.settings import setting
from fedshift.sites.types import SiteData

TRANSLATOR = ("style_encoder", "content_encoder", "decoder")
PRETRAINED = ("style_decoder", "content_decoder")
"""The throw-away decoders of pre-training."""
STATISTICS_BATCH = 16
"""Slices a forward pass where statistics are computed; it bounds memory."""
GRADIENT_NORM = 1.0
"""Longer gradients are cut to this length: the squared difference of Gram matrices grows with the
fourth power of the features, and one bad step would rule Adam's moments for the rest of a round."""
COLLAPSED = 1e-3
"""A response below this share of the images' own spread is none."""

Batch = TypeVar("Batch")
Losses = dict[str, torch.Tensor]
Draw = Callable[[int, torch.Generator], torch.Tensor]
"""A number and a CPU generator to that many codes."""


@dataclass(frozen=True)
class StyleTransfer(Segmenting):
    """Train a translator between the sites' styles, then the segmentation on restyled slices.

    The run's rounds are, in this order: ``warmup_rounds`` in which the segmentation network learns
    from the slices as they are; ``pretraining_rounds`` of the two encoders, each with a throw-away
    decoder; ``translator_rounds`` of joint training; and all that is left, segmentation with
    restyled slices.

    ``width`` to ``augmentation`` are the segmentation network's and its training's, as in
    :class:`~fedshift.client.methods.supervised.Supervised`; the next group is the translator's,
    ``foreign`` being the share of a batch rendered in other sites' styles, and ``perceptual`` and
    ``style`` the weights of the extractor's layers, finest first; the last says in which styles
    slices are rendered for the segmentation, and ``restyled`` how many of a batch.
    """

    tasks = frozenset({Segmentation})
    participation = Participation.ALL
    adapts = True
    own = frozenset({"extractor_file"})

    translator_width: int = setting(8, at_least=1)
    scales: int = setting(3, at_least=1, at_most=8)
    latent: int = setting(4, at_least=1)
    translator_norm: TranslatorNorm = "none"
    translator_batch: int = setting(8, at_least=2)
    translator_lr: float = setting(2e-3, at_least=0)
    style_encoder: Literal["shared", "kept"] = "shared"
    warmup_rounds: int = setting(0, at_least=0)
    pretraining_rounds: int = setting(0, at_least=0)
    translator_rounds: int = setting(4, at_least=1)
    foreign: float = setting(0.5, at_least=0, at_most=1)
    reconstruction: float = setting(10.0, at_least=0)
    perceptual: tuple[float, ...] = (0.0, 0.0, 1.0, 1.0)
    style: tuple[float, ...] = (3e3, 3e3, 3e3, 3e3)
    kl: float = setting(1e-2, at_least=0)
    distance: Literal["squared", "absolute"] = "squared"
    extractor: Literal["fixed", "task", "vgg16", "vgg19"] = "fixed"
    extractor_file: str | None = None

    styles: Literal["own", "observed", "beyond", "prior", "deterministic"] = "beyond"
    style_sites: tuple[str, ...] = ()
    restyled: float = setting(0.5, at_least=0, at_most=1)
    reach: float = setting(8.0, at_least=1)

    def __post_init__(self) -> None:
        """Refuse settings that do not go together with a :class:`fedshift.UserError`."""
        layers = {"fixed": len(FIXED_WIDTHS), "task": self.depth}.get(self.extractor, 5)
        for name in ("perceptual", "style"):
            if len(getattr(self, name)) != layers:
                raise UserError(
                    f"method.{name} needs {layers} weights, one for each layer of "
                    f"method.extractor={self.extractor}, not {len(getattr(self, name))}"
                )
            if min(getattr(self, name)) < 0:
                raise UserError(f"method.{name} must not have a weight below 0")
        if (self.extractor_file is not None) != self.extractor.startswith("vgg"):
            raise UserError(
                f"method.extractor={self.extractor} and method.extractor_file="
                f"{self.extractor_file} do not go together: vgg16 and vgg19 need the file of their "
                "weights, and no other extractor takes one"
            )
        if self.extractor == "task" and not self.warmup_rounds:
            raise UserError(
                "method.extractor=task compares images in the segmentation network's features: "
                "set method.warmup_rounds to at least 1, so that it has learned some"
            )
        if self.style_sites and self.styles in ("own", "prior"):
            raise UserError(
                f"method.style_sites has no meaning with method.styles={self.styles}; choose "
                "observed, beyond or deterministic, or leave it empty"
            )

    def drawn(self, steps: int) -> int:
        """A batch a step, of the sub-networks that have the smaller ones."""
        return steps * min(self.batch, self.translator_batch)

    def networks(self, task: Task) -> Networks:
        """Raises :class:`fedshift.UserError` when the grid cannot be halved often enough."""
        times = self.scales - 1
        check_halvings(task.size, times, f"method.scales={self.scales}", "method.scales")
        shape = (self.translator_width, self.scales)
        norm = self.translator_norm
        nets: Networks = {
            "segmenter": self.segmenter(task),
            "style_encoder": StyleEncoder(task.in_channels, *shape, self.latent, norm),
            "content_encoder": Encoder(task.in_channels, *shape, norm),
            "decoder": UNetDecoder(task.in_channels, *shape, norm),
        }
        if self.pretraining_rounds:
            for name in PRETRAINED:
                nets[name] = UNetDecoder(task.in_channels, *shape, norm)
        return nets

    def sharing(self, task: Task) -> dict[str, Sharing]:
        style_encoder = AVERAGED if self.style_encoder == "shared" else KEPT
        pretrained = dict.fromkeys(PRETRAINED if self.pretraining_rounds else (), AVERAGED)
        return {
            "segmenter": BROADCAST if task.unlabelled else AVERAGED,
            "style_encoder": style_encoder,
            "content_encoder": AVERAGED,
            "decoder": AVERAGED,
            **pretrained,
        }

    @property
    def _phases(self) -> Phases:
        return Phases(
            {
                "warmup": self.warmup_rounds,
                "pretraining": self.pretraining_rounds,
                "translator": self.translator_rounds,
                "segmentation": None,
            }
        )

    def bound_to_rounds(self, rounds: int) -> str:
        return self._phases.bound(rounds)

    def fit(
        self, site: SiteData, nets: Networks, bank: StatisticsBank, budget: Budget
    ) -> FitReport:
        """Train what the round is for; publish the site's style as the networks it was sent see it.

        Raises :class:`fedshift.UserError` when the run is too short, training diverged, the
        finished translator ignores the style or the content, or a site of ``style_sites`` has
        published none.
        """
        self._phases.check(budget.rounds)
        for net in nets.values():
            net.to(budget.device)
        phase = self._phases.of(budget.round)
        if phase == "warmup":
            return self.train_segmenter(site, nets, self.augmentation, budget)
        slices = Slices(site.splits["train"])
        if phase == "pretraining":
            return self._pretrain(slices, nets, budget)
        extractor = self._extractor(nets, budget.device)
        own = self._style_of(slices, nets, extractor, budget)
        others = {
            name: SiteStyle.from_bank(found, budget.device)
            for name, found in sorted(bank.items())
            if found and name != site.name
        }
        if phase == "translator":
            report = self._translate(slices, nets, extractor, others, budget)
            if budget.round == self._phases.before:
                self._check_rendering(slices, nets, own, budget)
        else:
            missing = [name for name in self.style_sites if name not in (site.name, *others)]
            if missing:
                raise Tellable(
                    f"method.style_sites: {missing[0]} has published no style; those that have "
                    f"are {', '.join(others) or 'none'}"
                )
            # A site whose style is wanted keeps its own.
            wanted = site.name in self.style_sites
            draw = None if wanted else self._draw(nets, own, others, site.size)
            report = self.train_segmenter(
                site, nets, _Restyling(self, nets, draw, budget.amp), budget
            )
        # What an untrained encoder calls a style is none.
        if budget.round > self.warmup_rounds + 1:
            report.statistics, report.summarised = own.to_bank(), len(slices)
        return report

    def _pretrain(self, slices: Slices, nets: Networks, budget: Budget) -> FitReport:
        """The style encoder as a variational autoencoder, the content encoder as an autoencoder."""
        style_encoder, content_encoder = nets["style_encoder"], nets["content_encoder"]
        assert isinstance(style_encoder, StyleEncoder)
        generator = torch.Generator().manual_seed(derive_seed(budget.seed, "latents"))

        def losses(batch: torch.Tensor) -> Losses:
            posteriors = style_encoder(batch)
            latents = self._latents(posteriors, generator)
            style_image = nets["style_decoder"](style_encoder.features(latents))
            content_image = nets["content_decoder"](content_encoder(batch))
            return {
                "style_reconstruction": F.mse_loss(style_image.float(), batch),
                "content_reconstruction": F.mse_loss(content_image.float(), batch),
                "kl": self._kl(posteriors),
            }

        names = ("style_encoder", "content_encoder", *PRETRAINED)
        batches = self._batches(slices, budget, "pretraining")
        metrics = self._descend(nets, names, batches, losses, budget)
        return FitReport(dict.fromkeys(names, len(slices)), metrics)

    def _translate(
        self,
        slices: Slices,
        nets: Networks,
        extractor: Extractor,
        others: Mapping[str, SiteStyle],
        budget: Budget,
    ) -> FitReport:
        """Joint training of the translator on pairs within the site and with other sites' styles.

        The first rows of a batch are rendered in foreign styles, the next are images with
        themselves, the rest are pairs of two images of the site.
        """
        style_encoder, content_encoder = nets["style_encoder"], nets["content_encoder"]
        assert isinstance(style_encoder, StyleEncoder)
        channels = widths(self.translator_width, self.scales)
        generator = torch.Generator().manual_seed(derive_seed(budget.seed, "latents"))
        known = list(others.values())

        def losses(batch: tuple[torch.Tensor, torch.Tensor]) -> Losses:
            content_images, style_images = batch
            size = len(content_images)
            # One pair at least is the site's own: the style encoder learns from no other.
            foreign = min(round(self.foreign * size), size - 1) if known else 0
            alike = (size - foreign) // 2 if self.reconstruction else 0
            with torch.no_grad():
                wanted = extractor(content_images)
            style_images = torch.cat(
                [content_images[foreign : foreign + alike], style_images[foreign + alike :]]
            )
            codes, grams = [], []
            if foreign:
                picks = torch.randint(len(known), (foreign,), generator=generator).tolist()
                codes.append(torch.cat([known[k].draw(1, generator) for k in picks]))
                grams.append(
                    [torch.stack(g) for g in zip(*(known[k].grams for k in picks), strict=True)]
                )
            posteriors = style_encoder(style_images)
            latents = self._latents(posteriors, generator)
            codes.append(code_of(style_encoder.features(latents)))
            with torch.no_grad():
                grams.append([gram_matrix(f) for f in extractor(style_images)])
            style = style_of(torch.cat(codes), channels)
            rendered = render(nets["decoder"], content_encoder(content_images), style)
            features = extractor(rendered)
            found = {
                "perceptual": self._weighted(self.perceptual, wanted, features),
                "style": self._weighted(
                    self.style,
                    [torch.cat(layer) for layer in zip(*grams, strict=True)],
                    [gram_matrix(f) for f in features],
                ),
                "kl": self._kl(posteriors),
            }
            if alike:
                rows = slice(foreign, foreign + alike)
                error = F.l1_loss(rendered[rows].float(), content_images[rows])
                found["reconstruction"] = self.reconstruction * error
            return found

        batches = zip(
            self._batches(slices, budget, "content"),
            self._batches(slices, budget, "style"),
            strict=True,
        )
        metrics = self._descend(nets, TRANSLATOR, batches, losses, budget)
        return FitReport(dict.fromkeys(TRANSLATOR, len(slices)), metrics)

    def _batches(self, slices: Slices, budget: Budget, purpose: str) -> Iterator[torch.Tensor]:
        seed = derive_seed(budget.seed, purpose)
        return slices.batches(self.translator_batch, budget.steps, seed, budget.device)

    def _descend(
        self,
        nets: Networks,
        names: Sequence[str],
        batches: Iterable[Batch],
        losses: Callable[[Batch], Losses],
        budget: Budget,
    ) -> dict[str, float]:
        """Train ``nets[name]`` of ``names`` on the sum of ``losses``, a step a batch; return the
        mean over the steps of each.

        Raises :class:`fedshift.UserError` when the training diverged."""
        descent = Descent(
            *(nets[name].train() for name in names),
            lr=self.translator_lr,
            amp=budget.amp,
            penalty=partial(budget.step.penalty, nets),
            longest=GRADIENT_NORM,
        )
        for batch in batches:
            with descent.autocast():
                found = losses(batch)
            descent.step(found)
        return descent.finished(
            f"the translator diverged in round {budget.round}: lower method.translator_lr "
            f"(now {self.translator_lr:g})"
        )

    def _latents(
        self, posteriors: Sequence[DiagonalGaussian], generator: torch.Generator
    ) -> list[torch.Tensor]:
        """z of every scale: drawn, or without variation the posterior's mean."""
        if self.styles == "deterministic":
            return [posterior.mean for posterior in posteriors]
        return [posterior.sample(generator) for posterior in posteriors]

    def _kl(self, posteriors: Sequence[DiagonalGaussian]) -> torch.Tensor:
        """The weighted divergence from N(0, I) (Eq. 6, corrected): the mean over the images and the
        entries of z, summed over the scales. Zero without variation."""
        weight = 0.0 if self.styles == "deterministic" else self.kl
        return weight * torch.stack([q.kl().mean() / q.mean[0].numel() for q in posteriors]).sum()

    def _weighted(
        self,
        weights: Sequence[float],
        wanted: Sequence[torch.Tensor],
        found: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Eqs. 3 and 5: the weighted sum over the layers of the mean difference."""
        loss = F.mse_loss if self.distance == "squared" else F.l1_loss
        terms = [
            weight * loss(b.float(), a.float())
            for weight, a, b in zip(weights, wanted, found, strict=True)
            if weight
        ]
        return sum(terms, torch.zeros((), device=found[0].device))

    def _extractor(self, nets: Networks, device: torch.device) -> Extractor:
        if self.extractor == "task":
            segmenter = frozen(nets["segmenter"])
            assert isinstance(segmenter, LVUNet)
            return lambda images: segmenter.encode(images)[self.blocks - 1 :: self.blocks][
                : self.depth
            ]
        if self.extractor == "fixed":
            return fixed_extractor().to(device)
        assert self.extractor_file is not None
        return vgg_extractor(self.extractor, self.extractor_file).to(device)

    def _style_of(
        self, slices: Slices, nets: Networks, extractor: Extractor, budget: Budget
    ) -> SiteStyle:
        """The distribution of the styles of all the site's training slices, z drawn once each."""
        style_encoder = nets["style_encoder"].eval()
        assert isinstance(style_encoder, StyleEncoder)
        generator = torch.Generator().manual_seed(derive_seed(budget.seed, "published"))
        codes, grams = [], []
        with torch.no_grad():
            for images in slices.once(STATISTICS_BATCH, budget.device):
                latents = self._latents(style_encoder(images), generator)
                codes.append(code_of(style_encoder.features(latents)))
                grams.append([gram_matrix(f) for f in extractor(images)])
        deviation, mean = torch.std_mean(torch.cat(codes), dim=0, correction=0)
        means = tuple(torch.cat(layer).mean(0) for layer in zip(*grams, strict=True))
        return SiteStyle(mean, deviation, means)

    def _draw(
        self,
        nets: Networks,
        own: SiteStyle,
        others: Mapping[str, SiteStyle],
        grid: tuple[int, int],
    ) -> Draw | None:
        """How the codes of restyled slices are drawn; None where there is no style to draw from."""
        if self.styles == "own":
            return own.draw
        if self.styles == "prior":
            encoder = nets["style_encoder"].eval()
            assert isinstance(encoder, StyleEncoder)
            return partial(prior_codes, encoder, self.latent, grid, own.mean.device)
        known = [style for name, style in others.items() if name in (self.style_sites or others)]
        if not known:
            return None
        if self.styles == "deterministic":
            known = [replace(style, deviation=torch.zeros_like(style.deviation)) for style in known]
        if self.styles == "beyond":
            centre = torch.stack([style.mean for style in (own, *known)]).mean(0)
            return lambda count, generator: extrapolated(
                of_any(known, count, generator), centre, self.reach, generator
            )
        return partial(of_any, known)

    def restyle(
        self, nets: Networks, images: torch.Tensor, codes: torch.Tensor, amp: bool = False
    ) -> torch.Tensor:
        """Render the content of ``images`` (B, 1, H, W) in the styles ``codes`` (B, D)."""
        encoder, decoder = nets["content_encoder"].eval(), nets["decoder"].eval()
        style = style_of(codes, widths(self.translator_width, self.scales))
        with (
            torch.no_grad(),
            torch.autocast(images.device.type, dtype=torch.float16, enabled=amp),
        ):
            return render(decoder, encoder(images), style).float()

    def _check_rendering(
        self, slices: Slices, nets: Networks, own: SiteStyle, budget: Budget
    ) -> None:
        """Refuse a translator whose output does not depend on the style, or on the content."""
        images = next(slices.once(STATISTICS_BATCH, budget.device))
        spread = images.std()
        one, other = (
            self.restyle(nets, images, (own.mean + change).expand(len(images), -1))
            for change in (-own.deviation, own.deviation)
        )
        if (one - other).abs().mean() < COLLAPSED * spread:
            raise Tellable(
                "the translator ignores the style: raise method.style, or method.translator_rounds"
            )
        if one.std(0).mean() < COLLAPSED * images.std(0).mean():
            raise Tellable(
                "the translator ignores the content: raise method.perceptual or "
                "method.reconstruction, or method.translator_rounds"
            )

    def predict(
        self, nets: Networks, images: Sequence[np.ndarray] | np.ndarray, scene: Scene
    ) -> np.ndarray:
        return predict_slices(nets["segmenter"], images, scene)

    def illustrate(self, site: SiteData, nets: Networks, scene: Scene) -> list[Illustration]:
        """As :func:`fedshift.client.methods.style_transfer.pictures.pictures`."""
        for net in nets.values():
            net.to(scene.device)
        return pictures(site, scene, partial(self.restyle, nets), self.reach)


@dataclass(frozen=True)
class _Restyling:
    """The change of a training batch: a share of its slices restyled, then the usual augmentation.
    The masks stay those of the content."""

    method: StyleTransfer
    nets: Networks
    draw: Draw | None
    amp: bool

    def __call__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator,
        warp: Warp,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Batches come in random order: the first slices are any.
        count = round(self.method.restyled * len(images))
        if count and self.draw is not None:
            codes = self.draw(count, generator)
            rendered = self.method.restyle(self.nets, images[:count], codes, self.amp)
            images = torch.cat([rendered, images[count:]])
        return self.method.augmentation(images, labels, generator, warp)
