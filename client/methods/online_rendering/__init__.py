"""Online adversarial rendering: every test image is brought to the source's appearance by itself.

Yang et al., "Generalizing Deep Models for Ultrasound Image Segmentation", MICCAI 2018. A renderer
changes an image's appearance and a segmentor segments what it rendered. Three discriminators judge
the rendered image, its segmentation, and the two as a pair. All are trained at the sites with
labels alone, by self-play (section 2.3): a random batch plays the generated images, others the real
ones. At a test image the same game goes on for a few iterations, without the segmentation loss,
on copies of the weights that are then thrown away.

Misprints: the discriminators' objectives (Eqs 2 to 4) are E log D(real) + E log(1 - D(fake)),
which the discriminators maximise; the paper prints "1 - log(D(fake))". The full objective (Eq. 5)
is minimised by renderer and segmentor. Its seven metrics are six in the text, Jaccard missing.

As in the authors' code the objective is never summed: each part has an Adam of its own, so that the
parts' scales do not matter, and they follow one another in the order below. Where that code and the
paper differ, the paper is followed: its Dice loss acted on logits and was too small to matter, here
it is on probabilities; online, every adversarial objective takes two steps for a discriminator's
one.

The paper leaves open, or this module changes:

* the segmentation loss is soft Dice + cross-entropy, the auxiliary outputs with weights 0.8 (half
  size) and 0.4 (quarter); the renderer's auxiliary output counts as much as the main one;
* a discriminator always judges real and generated images in one batch, so that batch normalisation
  cannot tell them by their batch, and its running statistics are those of the mixture;
* masks are blurred by 3 x 3 pixels, true and predicted ones alike: hard edges would give the true
  ones away;
* several structures: the discriminators of structure and pairs see one map of each;
* ``disturbance`` changes the appearance of the batch that plays the generated images, and the
  renderer is then asked for the unchanged image: with the paper's 0 both batches come from one
  distribution, and nothing teaches the discriminators what another scanner looks like;
* ``plain``, a segmentor of its own on the unrendered images, is the paper's model without
  adaptation (Orig-S2T), trained in the same steps.

Online, the paper shows the discriminators real samples of the source's rendered training set S'.
These are patients' images and stay where they are; docs/methods/online_rendering.md has the forms
that ``reals`` chooses from. The last round trains nothing: the sites publish, at the weights that
will be used, the means over S' that these forms need.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import nn

from fedshift import Tellable, derive_seed
from fedshift.client.augmentation import Augmentation
from fedshift.client.contract.illustrations import Illustration
from fedshift.client.contract.method import (
    AVERAGED,
    Budget,
    FitReport,
    Method,
    Networks,
    Scene,
    Sharing,
    StatisticsBank,
)
from fedshift.client.contract.step import Batch, Losses, Seen
from fedshift.client.contract.task import Task
from fedshift.client.descent import Descent
from fedshift.client.gan import (
    discriminator_loss,
    fake_loss,
    generator_loss,
    is_collapsed,
    real_loss,
)
from fedshift.client.methods.online_rendering.networks import HALVINGS, Judge, Renderer, Segmentor
from fedshift.client.methods.online_rendering.objectives import (
    View,
    generated_for,
    hybrid_loss,
    judge_of,
    logits_of,
    maps_of,
    pool,
    rendering_loss,
    shown_to,
    spread_of,
)
from fedshift.client.methods.online_rendering.pictures import pictures
from fedshift.client.networks.halving import check_halvings
from fedshift.client.networks.lv_unet import Norm
from fedshift.client.slices import LabelledSlices
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.client.training import changed, predict_slices
from fedshift.protocol.settings import setting
from fedshift.sites.types import SiteData

Reals = Literal["frozen", "statistics", "stale_gradient"]
"""What stands in for the source's real images online."""

BETAS = (0.5, 0.999)
"""Adam's in self-play and online ("momentum term", section 3)."""
TURNS = 2
"""Steps of renderer and segmentor on an adversarial objective for each of its discriminator."""


@dataclass(frozen=True)
class OnlineRendering(Method):
    """Sites with labels train by self-play; every test image then adapts its own copy.

    ``renderer_width``, ``segmenter_width`` and ``judge_width`` are the channels of the networks'
    first level, ``norm`` their normalisation; ``batch`` and ``lr`` are those of self-play.
    ``without`` leaves out discriminators: the paper's S2T-p and S2T-sp. ``disturbance`` (0 to 1) is
    how much the self-play's generated batch is changed.

    Online: ``iterations`` at most, Adam's ``online_lr``, what stands in for the ``reals``, and
    ``stop``, which ends the iterations early once every discriminator's logit is at least the mean
    on S' less ``stop`` standard deviations (null: never).
    """

    tasks = frozenset({Segmentation})
    stepped = ("plain", "segmenter")
    stages = ("source", "iteration_0")
    # The discriminators judge whole label maps: one without a structure is another's, not a gap.
    complete_labels = True
    adapts = True

    renderer_width: int = setting(8, at_least=1)
    segmenter_width: int = setting(8, at_least=1)
    judge_width: int = setting(8, at_least=1)
    norm: Norm = "batch"
    batch: int = setting(4, at_least=1)
    lr: float = setting(2e-3, at_least=0)
    disturbance: float = setting(1.0, at_least=0, at_most=1)
    without: Literal["none", "pair", "structure_and_pair"] = "none"
    iterations: int = setting(5, at_least=0, at_most=25)
    online_lr: float = setting(1e-4, at_least=0)
    reals: Reals = "statistics"
    stop: float | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def views(self) -> tuple[View, ...]:
        """What the discriminators of this run judge."""
        every: tuple[View, ...] = ("appearance", "structure", "pair")
        return every[: {"none": 3, "pair": 2, "structure_and_pair": 1}[self.without]]

    def drawn(self, steps: int) -> int:
        """A batch a step."""
        return steps * self.batch

    def networks(self, task: Task) -> Networks:
        check_halvings(task.size, HALVINGS, "method=online_rendering")
        channels, maps = task.in_channels, task.outputs - 1
        inputs = {"appearance": channels, "structure": maps, "pair": channels + maps}

        def segmentor() -> Segmentor:
            return Segmentor(channels, task.outputs, width=self.segmenter_width, norm=self.norm)

        nets: Networks = {
            "renderer": Renderer(channels, width=self.renderer_width, norm=self.norm),
            "segmenter": segmentor(),
            "plain": segmentor(),
            **{
                judge_of(view): Judge(inputs[view], width=self.judge_width, norm=self.norm)
                for view in self.views
            },
        }
        for net in nets.values():
            # A third faster on a CPU with so few channels, and what a GPU prefers. Done here, so
            # that the networks compute the same bits in every process.
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return nets

    def sharing(self, task: Task) -> dict[str, Sharing]:
        """All are averaged: each site that trains has both kinds of image for its
        discriminators."""
        names = ["renderer", "segmenter", "plain", *map(judge_of, self.views)]
        return dict.fromkeys(names, AVERAGED)

    def bound_to_rounds(self, rounds: int) -> str:
        """The census."""
        return "trains nothing in the run's last round, in which sites publish what they rendered"

    def fit(
        self, site: SiteData, nets: Networks, bank: StatisticsBank, budget: Budget
    ) -> FitReport:
        """Self-play on the labelled slices of the training split. In the last of several rounds
        the weights stay as they are, and the site publishes what S' is like at them."""
        slices = LabelledSlices(site.splits["train"], budget.task)
        if not len(slices):
            return FitReport()
        if self.norm == "batch" and min(self.batch, len(slices)) < 2:
            raise Tellable(
                f"site {site.name} would train on batches of one, which method.norm=batch cannot "
                f"use (method.batch={self.batch}, {len(slices)} labelled slices): set method.batch "
                "to 2 or more, or method.norm=group"
            )
        for net in nets.values():
            net.to(budget.device)
        report = FitReport(dict.fromkeys(nets, len(slices)))
        last = budget.round == budget.rounds
        if not last or budget.rounds == 1:
            report.metrics = self._self_play(site.name, nets, slices, budget)
        if last:
            report.statistics = self._census(nets, slices, budget.device)
            report.summarised = len(slices)
        return report

    def _self_play(
        self, site: str, nets: Networks, slices: LabelledSlices, budget: Budget
    ) -> dict[str, float]:
        """Train all networks in place; return the means of their losses over the steps."""
        renderer, segmenter, plain = nets["renderer"], nets["segmenter"], nets["plain"]
        assert isinstance(renderer, Renderer)
        assert isinstance(segmenter, Segmentor)
        assert isinstance(plain, Segmentor)
        for net in nets.values():
            net.train()
        device = budget.device
        step, warp = budget.step, budget.task.warp
        descent = partial(
            Descent,
            lr=self.lr,
            betas=BETAS,
            amp=budget.amp,
            penalty=partial(step.penalty, nets),
        )
        fooling = {
            view: descent(renderer) if view == "appearance" else descent(renderer, segmenter)
            for view in self.views
        }
        judging = {view: descent(nets[judge_of(view)]) for view in self.views}
        generator = torch.Generator().manual_seed(derive_seed(budget.seed, "augmentation"))
        disturb = Augmentation(affine=False, intensity=self.disturbance)

        def batches(role: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            seed = derive_seed(budget.seed, "batches", role)
            for drawn in slices.batches(self.batch, budget.steps, seed, device):
                shown = changed(drawn, step)
                yield self.augmentation(shown.images, shown.labels, generator, warp)

        def plain_loss(batch: Batch) -> tuple[Losses, Seen]:
            with alone.autocast():
                loss = hybrid_loss(plain.outputs(batch.images), batch.labels)
            return {"loss": loss}, {"plain": batch.images}

        def rendered_loss(batch: Batch) -> tuple[Losses, Seen]:
            with segmenting.autocast():
                rendered = renderer(batch.images)
                loss = hybrid_loss(segmenter.outputs(rendered), batch.labels)
            return {"loss": loss}, {"segmenter": rendered.detach()}

        both = nn.Sequential(renderer, segmenter)
        rendering = descent(renderer)
        alone = descent(plain, objective=plain_loss)
        segmenting = descent(both, objective=rendered_loss)
        images = torch.empty(0)
        drawn = zip(batches("generated"), *map(batches, self.views), strict=True)
        for (images, labels), *reals in drawn:
            disturbed, _ = disturb(images, labels, generator, warp)
            alone.follow(step, plain, Batch(images, labels))
            with rendering.autocast():
                loss = rendering_loss(renderer.outputs(disturbed), images)
            rendering.step({"loss": loss})
            for view, (real_images, real_labels) in zip(self.views, reals, strict=True):
                judge = nets[judge_of(view)]
                real = shown_to(view, real_images, maps_of(real_labels, segmenter.classes))
                # Two regions: the second must not meet casts of weights that the first step moved.
                with fooling[view].autocast():
                    generated = generated_for(view, renderer, segmenter, disturbed)
                    loss = generator_loss("bce", logits_of(judge, real, generated)[1])
                fooling[view].step({"loss": loss})
                with judging[view].autocast():
                    loss = discriminator_loss("bce", *logits_of(judge, real, generated.detach()))
                judging[view].step({"loss": loss})
                if view == "appearance":
                    segmenting.follow(step, both, Batch(disturbed, labels))
        diverged = (
            f"the self-play of site {site} diverged in round {budget.round} (a loss or a weight is "
            f"not finite): lower method.lr, now {self.lr:g}"
        )
        descents = {"": segmenting, "plain_": alone, "rendering_": rendering} | {
            f"{judge_of(view)}_": judging[view] for view in self.views
        }
        metrics = {f"{of}loss": d.finished(diverged)["loss"] for of, d in descents.items()}
        with torch.no_grad(), rendering.autocast():
            rendered = renderer(images)
        if is_collapsed(rendered.float(), images):
            raise Tellable(
                f"the renderer of site {site} collapsed in round {budget.round}: what it renders "
                f"hardly varies any more; lower method.lr, now {self.lr:g}"
            )
        penalty = {name: mean for name, mean in segmenting.means().items() if name == "penalty"}
        return metrics | penalty

    def _census(
        self, nets: Networks, slices: LabelledSlices, device: torch.device
    ) -> dict[str, np.ndarray]:
        """Means over the training images of what the discriminators find in S', the rendered
        training set, in evaluation mode; see :func:`pool`."""
        renderer, segmenter = nets["renderer"].eval(), nets["segmenter"]
        assert isinstance(segmenter, Segmentor)
        sums: dict[str, torch.Tensor] = {}

        def add(name: str, found: torch.Tensor) -> None:
            found = found.detach().double()
            sums[name] = sums[name] + found if name in sums else found

        for batch in slices.batches(1, len(slices), 0, device):
            with torch.no_grad():
                rendered = renderer(batch.images)
            for view in self.views:
                name = judge_of(view)
                judge = nets[name].eval()
                assert isinstance(judge, Judge)
                real = shown_to(view, rendered, maps_of(batch.labels, segmenter.classes))
                logit = judge(real)
                add(f"{name}.logit", logit[0])
                add(f"{name}.logit_square", logit[0].square())
                if self.reals == "stale_gradient":
                    loss = real_loss("bce", logit)
                    gradients = torch.autograd.grad(loss, list(judge.parameters()))
                    add(f"{name}.gradient", torch.cat([g.flatten() for g in gradients]))
                if self.reals == "statistics":
                    with torch.no_grad():
                        moments = judge.moments(real)[0]
                    add(f"{name}.moments", moments)
                    add(f"{name}.moments_square", moments.square())
        means = {name: (total / len(slices)).cpu().numpy() for name, total in sums.items()}
        published = {name: mean.astype(np.float32) for name, mean in means.items()}
        return {**published, "images": np.array([len(slices)], np.float32)}

    def predict(
        self, nets: Networks, images: Sequence[np.ndarray] | np.ndarray, scene: Scene
    ) -> np.ndarray:
        """Stage ``source`` segments the images as they are, with the plain segmentor;
        ``iteration_0`` segments what is rendered. The finished method adapts copies of the
        networks to each image by itself."""
        if scene.stage == "source":
            return predict_slices(nets["plain"], images, scene)
        if scene.stage == "iteration_0":
            model = nn.Sequential(nets["renderer"], nets["segmenter"])
            return predict_slices(model, images, scene)
        found = []
        for image in images:
            *_, model = self.adapt(nets, image, scene)
            found.append(predict_slices(model, [image], scene))
        if not found:
            raise ValueError("no image to predict")
        return np.concatenate(found)

    def adapt(self, nets: Networks, image: np.ndarray, scene: Scene) -> Iterator[nn.Sequential]:
        """Yield copies of renderer and segmentor before the first and after every iteration of
        online rendering of ``image`` (C, H, W): each time the same two networks, as they are then.

        What is drawn depends on the image and on ``scene.seed``, on no other image.
        """
        device = scene.device
        own = {
            name: copy.deepcopy(net).to(device).eval()
            for name, net in nets.items()
            if name != "plain"
        }
        renderer, segmenter = own["renderer"], own["segmenter"]
        assert isinstance(renderer, Renderer)
        adapted = nn.Sequential(renderer, segmenter)
        yield adapted
        pixels = np.array(image, dtype=np.float32)
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest()
        generator = torch.Generator().manual_seed(derive_seed(scene.seed, "online", digest))
        source = torch.from_numpy(pixels)[None].to(device)
        known = pool(scene.bank)
        descent = partial(Descent, lr=self.online_lr, betas=BETAS)
        rendering = descent(renderer)
        # As in the authors' code, only the structure's objective moves the segmentor.
        fooling = {
            view: descent(renderer, segmenter) if view == "structure" else descent(renderer)
            for view in self.views
        }
        judging = {view: descent(own[judge_of(view)]) for view in self.views}
        for _ in range(self.iterations):
            if self._settled(own, source, known):
                return
            side = 2 + int(torch.randint(2, (), generator=generator))
            pair = torch.cat([source, source.flip(side)])
            rendering.step({"loss": rendering_loss(renderer.outputs(pair), pair)})
            for view in self.views:
                judge = own[judge_of(view)]
                assert isinstance(judge, Judge)
                for _ in range(TURNS):
                    generated = generated_for(view, renderer, segmenter, pair)
                    loss = self._online_loss(judge, view, generated, known)
                    fooling[view].step({"loss": loss})
                gradient = known.get(f"{judge_of(view)}.gradient")
                if self.reals == "stale_gradient" and gradient is not None:
                    with torch.no_grad():
                        generated = generated_for(view, renderer, segmenter, pair)
                    losses = judging[view].gradients({"loss": fake_loss("bce", judge(generated))})
                    judging[view].add_constant(gradient.to(device))
                    judging[view].take(losses)
            yield adapted

    def _online_loss(
        self, judge: Judge, view: View, generated: torch.Tensor, known: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """What renderer and segmentor minimise online: the discriminator's verdict, or with
        ``reals=statistics`` the mean square of the deviations of its features' moments from S',
        each in standard deviations over S'."""
        mean = known.get(f"{judge_of(view)}.moments")
        if self.reals != "statistics" or mean is None:
            return generator_loss("bce", judge(generated))
        spread = spread_of(known, f"{judge_of(view)}.moments")
        deviations = judge.moments(generated) - mean.to(generated.device)
        return (deviations / spread.to(generated.device)).square().mean()

    @torch.no_grad()
    def _settled(
        self, nets: Networks, image: torch.Tensor, known: Mapping[str, torch.Tensor]
    ) -> bool:
        """Whether every discriminator takes ``image``, rendered, for one of S'."""
        if self.stop is None or not known:
            return False
        for view in self.views:
            name = judge_of(view)
            logit = nets[name](generated_for(view, nets["renderer"], nets["segmenter"], image))
            spread = spread_of(known, f"{name}.logit")
            if logit.item() < known[f"{name}.logit"] - self.stop * spread:
                return False
        return True

    def features(self, nets: Networks, images: torch.Tensor) -> torch.Tensor:
        """The mean over pixels of the segmentor's deepest features of the rendered images, before
        any online update, (B, 8 segmenter_width)."""
        renderer, segmenter = nets["renderer"].eval(), nets["segmenter"].eval()
        assert isinstance(segmenter, Segmentor)
        with torch.inference_mode():
            rendered = renderer(images.to(segmenter.head.weight.device))
            return segmenter.encode(rendered)[-1].mean(dim=(2, 3))

    def trajectory(
        self, nets: Networks, image: np.ndarray, scene: Scene
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the rendered ``image`` (C, H, W) and its class probabilities (K, H, W) before the
        first and after every iteration."""
        for adapted in self.adapt(nets, image, scene):
            with torch.no_grad():
                rendered = adapted[0](torch.from_numpy(np.array(image))[None].to(scene.device))
                found = adapted[1](rendered).softmax(1)
            yield rendered[0].cpu().numpy(), found[0].cpu().numpy()

    def illustrate(self, site: SiteData, nets: Networks, scene: Scene) -> list[Illustration]:
        """As :func:`fedshift.client.methods.online_rendering.pictures.pictures`."""
        return pictures(site, partial(self.trajectory, nets, scene=scene), self.iterations)
