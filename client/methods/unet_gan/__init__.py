"""Unet-GAN: images of a vendor without labels are translated for a U-Net that knows another vendor.

Yan et al., "The Domain Shift Problem of Medical Image Segmentation and Vendor-Adaptation by
Unet-GAN", MICCAI 2019. Its three steps (section 2, "Overall Workflow"): an LV-Unet f is trained on
the labelled source; with f frozen, translators G_S (target to source), G_T (source to target) and
discriminators D_S, D_T are trained without any label; at the target, f segments G_S's translation.
Per target, with x a source image and t a target image (Eq. 5):

    L = L_GAN + 15 L_Unet + 5 L_SSIM
    L_GAN = E log D_S(x) + E log(1 - D_S(G_S(t))) + E log D_T(t) + E log(1 - D_T(G_T(x)))
    L_Unet = E |f(x) - f(x')|^2 + E |f(t) - f(t')|^2           mean square over features (Eq. 4)
    L_SSIM = E (1 - SSIM(x, x')) + E (1 - SSIM(t, t'))         exponents 0.1, 0.1 and 1 (Eq. 3)

Corrected: L_GAN is printed with "1 - log D(G)" for log(1 - D(G)); SSIM's structure with a factor 2
that makes it near 2 for equal images (see :mod:`fedshift.client.methods.unet_gan.ssim`); the norms
around mean squares are left out.

The paper leaves open, and here is:

* what is compared with x. ``compare="reconstructed"``: x' = G_S(G_T(x)), so that L_Unet and L_SSIM
  replace CycleGAN's cycle loss, as "a modified image loss" suggests. ``"translated"``: x' = G_T(x),
  the literal wording; it pulls f(G_S(t)) to the very features with which f fails. CycleGAN's own
  cycle loss (L1) can be added: ``cycle_weight``.
* the layers: residual blocks 7 and 9 of the paper's U-Net are the first and the last of its deepest
  level (:mod:`fedshift.client.networks.lv_unet`), and so they are at any depth.
* the networks (:class:`Translator`, :class:`PatchDiscriminator`), batch, iterations and the
  adversarial form: the generators' is non-saturating. Discriminators see images with a little
  Gaussian noise (``judge_noise``), or they win by the target's noise alone, which no deterministic
  G_T can add. Translators and discriminators step together, from the same weights; Adam with betas
  0.5 and 0.99, constant for half of the rounds, then falling linearly to zero.
* early stopping's criterion, which here must do without labels: the entropy of the U-Net's
  prediction on the target's translated validation images. A target's networks are frozen once it
  has not reached a new low in ``patience`` looks, one every ten rounds. Off by default, since the
  learning rate ends at zero.

Federated form. Every expectation is over one domain, so L = E_x J_S(x) + E_t J_T(t), and each site
computes its own domain's part; no image leaves it. Only each discriminator meets its real images at
one site and its translated ones at another. ``form`` says how that is mended:

* ``exact``: one batch a round; sites send gradients, the coordinator adds the domains' means with
  weight 1 and takes one step of Adam: centralised training, step by step.
* ``stale``: ``local_iterations`` local steps a round, each along the site's own gradient plus the
  other domain's mean gradient of its round before, which is published. The first round steps
  nowhere: it only publishes.
* ``average``: plain averaging of networks trained on local terms. A negative control: each
  discriminator sees one label only.
* ``replay``: D_S is trained at the source alone, with G_S(G_T(x)) for translated images, D_T at the
  target alone; the translators are averaged. A negative control: D_S never sees a translated t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fedshift import Tellable
from fedshift.client.contract.illustrations import Illustration, ImageGrid
from fedshift.client.contract.method import (
    AVERAGED,
    BROADCAST,
    Budget,
    FitReport,
    Networks,
    Participation,
    Scene,
    Sharing,
    StatisticsBank,
)
from fedshift.client.contract.task import Task
from fedshift.client.gan import fake_loss, generator_loss, is_collapsed, real_loss
from fedshift.client.methods.base import Segmenting
from fedshift.client.methods.unet_gan.domain import DomainSlices
from fedshift.client.methods.unet_gan.gradients import (
    BETAS,
    Gradients,
    add,
    gradients_of,
    others_gradients,
    published,
    recall,
    remember,
    set_gradients,
)
from fedshift.client.methods.unet_gan.patch_discriminator import PatchDiscriminator
from fedshift.client.methods.unet_gan.side import SOURCE, Side, targets_of
from fedshift.client.methods.unet_gan.ssim import ssim
from fedshift.client.methods.unet_gan.translator import Translator
from fedshift.client.networks.frozen import held
from fedshift.client.networks.lv_unet import LVUNet
from fedshift.client.phases import Phases
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.client.training import predict_slices
from fedshift.protocol.messages import Adam
from fedshift.protocol.settings import setting
from fedshift.sites.types import SiteData

EXPONENTS = (0.1, 0.1, 1.0)
"""Of SSIM's luminance, contrast and structure (section 3.2)."""
LOOK_EVERY = 10
"""Rounds from one look of the stopping rule to the next."""
SHOWN = 4
"""How many test images of a site are drawn for the report."""


@dataclass(frozen=True)
class UnetGAN(Segmenting):
    """One set of translators and discriminators for every site without labels.

    The first ``segmenter_rounds`` rounds train the LV-Unet (``width`` to ``lr``, as in
    ``method=supervised``) where there are labels; the next ``translation_rounds`` the translation;
    what rounds are left train nothing.

    ``form``, ``local_iterations`` (of ``stale``, ``average`` and ``replay``) and ``compare``: see
    the module. ``images`` is the batch of a translation step.
    """

    tasks = frozenset({Segmentation})
    participation = Participation.BOTH
    adapts = True
    stages = (SOURCE,)

    segmenter_rounds: int = setting(5, at_least=1)
    translation_rounds: int = setting(300, at_least=1)
    form: Literal["exact", "stale", "average", "replay"] = "exact"
    local_iterations: int = setting(2, at_least=1)
    compare: Literal["reconstructed", "translated"] = "reconstructed"
    feature_weight: float = setting(15.0, at_least=0)
    ssim_weight: float = setting(5.0, at_least=0)
    cycle_weight: float = setting(0.0, at_least=0)
    translator_width: int = setting(8, at_least=1)
    translator_blocks: int = setting(2, at_least=1)
    judge_width: int = setting(18, at_least=1)
    judge_stages: int = setting(3, at_least=1)
    judge_noise: float = setting(0.05, at_least=0)
    images: int = setting(4, at_least=1)
    translator_lr: float = setting(3e-3, at_least=0)
    judge_lr: float = setting(1e-3, at_least=0)
    patience: int = setting(0, at_least=0)

    def drawn(self, steps: int) -> int:
        """A batch a step of the U-Net; the gradients of a translation are of one batch."""
        return min(self.images, super().drawn(steps))

    def networks(self, task: Task) -> Networks:
        nets: Networks = {"segmenter": self.segmenter(task)}
        for target in task.unlabelled:
            side = Side.of(target, SOURCE)
            for name in side.translators:
                nets[name] = Translator(
                    task.in_channels, self.translator_width, self.translator_blocks
                )
            for name in side.judges:
                nets[name] = PatchDiscriminator(
                    task.in_channels, self.judge_width, self.judge_stages
                )
        return nets

    def sharing(self, task: Task) -> dict[str, Sharing]:
        found = {"segmenter": BROADCAST}
        for target in task.unlabelled:
            side = Side.of(target, SOURCE)
            for name in (*side.translators, *side.judges):
                found[name] = self._sharing(name, (SOURCE, target))
        return found

    def _sharing(self, name: str, domains: tuple[str, str]) -> Sharing:
        match self.form:
            case "exact":
                return Sharing("summed", domains, self._adam(name))
            case "average":
                return AVERAGED
            case "replay" if name.startswith("judge_"):
                return BROADCAST  # One domain trains it.
        return Sharing("balanced", domains)

    def _adam(self, name: str) -> Adam:
        return Adam(
            self.judge_lr if name.startswith("judge_") else self.translator_lr,
            *BETAS,
            constant_until=self.segmenter_rounds + self.translation_rounds // 2,
            last_round=self.segmenter_rounds + self.translation_rounds,
        )

    @property
    def _phases(self) -> Phases:
        rounds = {"segmenter": self.segmenter_rounds, "translation": self.translation_rounds}
        return Phases(rounds)

    def bound_to_rounds(self, rounds: int) -> str:
        return self._phases.bound(rounds)

    def fit(
        self, site: SiteData, nets: Networks, bank: StatisticsBank, budget: Budget
    ) -> FitReport:
        """Train what the round is for; a site without labels waits for the U-Net to be ready.

        Raises :class:`fedshift.UserError` when the run has no round for the translation, and when
        a loss is not finite or the translated images collapse.
        """
        self._phases.check(budget.rounds)
        for net in nets.values():
            net.to(budget.device)
        phase = self._phases.of(budget.round)
        if phase == "segmenter":
            return self.train_segmenter(site, nets, self.augmentation, budget)
        if phase != "translation":
            return FitReport()
        targets = targets_of(nets)
        domain = site.name if site.name in targets else SOURCE
        report = FitReport(domain=domain)
        for target in targets:
            if domain in (SOURCE, target) and not self._is_settled(bank, target):
                side = Side.of(target, domain)
                if self.form == "exact":
                    self._leave_gradients(side, site, nets, budget, report)
                else:
                    self._take_steps(side, site, nets, bank, budget, report)
        if domain != SOURCE and report.trained and self.patience:
            self._look(site, nets, bank, budget, report)
        return report

    def _is_settled(self, bank: StatisticsBank, target: str) -> bool:
        """Whether the target said that its translation improves no more: all sites read it."""
        noted = bank.get(target, {}).get("uncertainty")
        return bool(self.patience and noted is not None and noted[1] >= self.patience)

    def _look(
        self,
        site: SiteData,
        nets: Networks,
        bank: StatisticsBank,
        budget: Budget,
        report: FitReport,
    ) -> None:
        """Publish the U-Net's lowest uncertainty (nats a pixel) on the site's translated images so
        far, and how many looks ago that was."""
        cases = site.splits["val"] or site.splits["train"]
        images = [row for case in cases for row in np.asarray(case.image)]
        noted = bank.get(site.name, {}).get("uncertainty")
        if (budget.round - self.segmenter_rounds) % LOOK_EVERY == 0:
            found = self.predict(nets, images, Scene(budget.task, site.name, budget.device))
            entropy = float(-(found * np.log(np.maximum(found, 1e-12))).sum(axis=1).mean())
            if noted is None or entropy < noted[0]:
                noted = np.array([entropy, 0.0])
            else:
                noted = np.array([noted[0], noted[1] + 1])
            report.metrics["uncertainty"] = entropy
        if noted is not None:
            # In every round: what a site publishes replaces what it published before.
            report.statistics["uncertainty"] = noted
            report.summarised = min(report.summarised or len(images), len(images))

    def _leave_gradients(
        self, side: Side, site: SiteData, nets: Networks, budget: Budget, report: FitReport
    ) -> None:
        """The gradients of one batch, left where the coordinator's sum collects them."""
        slices = DomainSlices(site, self.augmentation)
        for images, generator in slices.batches(self.images, 1, side.target, budget):
            gradients, metrics = self.gradients(side, images, nets, generator, amp=budget.amp)
            _add_penalty(gradients, nets, budget)
            for name, values in gradients.items():
                set_gradients(nets[name], values)
            report.trained |= dict.fromkeys(gradients, len(slices))
            report.metrics |= metrics

    def _take_steps(
        self,
        side: Side,
        site: SiteData,
        nets: Networks,
        bank: StatisticsBank,
        budget: Budget,
        report: FitReport,
    ) -> None:
        """Local steps of Adam, whose moments the site remembers from round to round."""
        slices, steps = DomainSlices(site, self.augmentation), self.local_iterations
        names = self._played(side)
        stale, others = self.form == "stale", None
        if stale:
            others = others_gradients(bank, side, report.domain, nets, budget.device)
        optimizers = [
            recall(name, nets[name], self._adam(name).rate(budget.round), budget.memory)
            for name in names
        ]
        sums = {name: [torch.zeros_like(p) for p in nets[name].parameters()] for name in names}
        for images, generator in slices.batches(self.images, steps, side.target, budget):
            gradients, metrics = self.gradients(side, images, nets, generator, amp=budget.amp)
            for key, value in metrics.items():
                report.metrics[key] = report.metrics.get(key, 0.0) + value / steps
            if stale:
                add(sums, gradients)
                if others is None:
                    continue
                add(gradients, others)
            _add_penalty(gradients, nets, budget)
            for name, optimizer in zip(names, optimizers, strict=True):
                set_gradients(nets[name], gradients[name])
                optimizer.step()
        report.trained |= dict.fromkeys(names, len(slices))
        for name, optimizer in zip(names, optimizers, strict=True):
            remember(name, nets[name], optimizer, budget.memory)
        if stale:
            report.statistics |= published(sums, nets, steps, len(slices))
            report.summarised = min(len(slices), steps * self.images)

    def _played(self, side: Side) -> tuple[str, ...]:
        """The sub-networks that the domain of ``side`` trains."""
        if self.form == "replay":
            return (*side.translators, side.judge_here)
        return (*side.translators, *side.judges)

    def gradients(
        self,
        side: Side,
        images: torch.Tensor,
        nets: Networks,
        generator: torch.Generator,
        *,
        amp: bool = False,
    ) -> tuple[Gradients, dict[str, float]]:
        """The gradients of one domain's part of L, at the networks' weights, and the losses.

        ``images`` (B, C, H, W), in [0, 1], are of the domain whose ``side`` it is. Translators
        descend their loss and discriminators theirs; neither receives the other's gradient, and the
        U-Net none. ``generator``, on the CPU, draws the noise on what the discriminators see.
        Mixed precision is bfloat16, whose range needs no loss scale, so that gradients can be added
        as they are.

        Raises :class:`fedshift.UserError` when a loss is not finite or the translations collapse.
        """
        there, back = (nets[name] for name in side.translators)
        judge_here, judge_there = (nets[name] for name in side.judges)
        segmenter = nets["segmenter"].eval()
        noise = self.judge_noise * torch.randn((2, *images.shape), generator=generator)
        noise = noise.to(images.device)
        with (
            held(segmenter),
            torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=amp),
        ):
            translated = there(images)
            reconstructed = back(translated)
            compared = reconstructed if self.compare == "reconstructed" else translated
            with torch.no_grad():
                wanted = self._blocks_7_and_9(segmenter, images)
            found = self._blocks_7_and_9(segmenter, compared)
            real = judge_here(images + noise[0]).to(images.dtype)
            fake = judge_there(translated + noise[1]).to(images.dtype)
            fooled = fake
            if self.form == "replay":
                fooled = judge_here(reconstructed.detach() + noise[1]).to(images.dtype)
        adversarial = generator_loss("bce", fake)
        feature = torch.zeros_like(adversarial)
        for new, old in zip(found, wanted, strict=True):
            feature = feature + F.mse_loss(new.to(images.dtype), old.to(images.dtype))
        alpha, beta, gamma = EXPONENTS
        structure = 1 - ssim(compared, images, alpha=alpha, beta=beta, gamma=gamma).mean()
        loss = adversarial + self.feature_weight * feature + self.ssim_weight * structure
        if self.cycle_weight:
            loss = loss + self.cycle_weight * F.l1_loss(reconstructed, images)
        judge_loss = real_loss("bce", real) + fake_loss("bce", fooled)
        self._check_health(side, loss + judge_loss, translated, images)
        gradients = gradients_of(loss, side.translators, nets, again=True)
        gradients |= gradients_of(judge_loss, self._played(side)[2:], nets)
        losses = {
            "adversarial": adversarial,
            "feature": feature,
            "structure": structure,
            "judge": judge_loss,
        }
        return gradients, {f"{k}_{side.target}": float(v.detach()) for k, v in losses.items()}

    def _blocks_7_and_9(self, segmenter: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
        """Their counterparts: the outputs of the first and the last block of the deepest level."""
        assert isinstance(segmenter, LVUNet)
        outputs = segmenter.encode(images)
        return [outputs[(self.depth - 1) * self.blocks], outputs[-1]]

    def _check_health(
        self, side: Side, losses: torch.Tensor, translated: torch.Tensor, images: torch.Tensor
    ) -> None:
        if not torch.isfinite(losses):
            fault = "diverged (a loss is not finite)"
        elif is_collapsed(translated, images):
            fault = "collapsed (its images hardly differ from each other or are flat)"
        else:
            return
        raise Tellable(
            f"the translation of {side.target} {fault}: lower method.translator_lr and "
            "method.judge_lr, or train it again with another seed"
        )

    def predict(
        self, nets: Networks, images: Sequence[np.ndarray] | np.ndarray, scene: Scene
    ) -> np.ndarray:
        """Step 3: a target's images are translated first; stage ``source`` and any other site's are
        segmented as they are."""
        net = nets["segmenter"]
        if scene.stage != SOURCE and scene.site in targets_of(nets):
            net = nn.Sequential(nets[f"to_source.{scene.site}"], net)
        return predict_slices(net, images, scene)

    def illustrate(self, site: SiteData, nets: Networks, scene: Scene) -> list[Illustration]:
        """Test images, their translations and the differences: at a target to the source, at a
        source site to every target, elsewhere nothing."""
        targets = targets_of(nets)
        if site.role == "unseen":
            return []
        cases = site.splits["test"][:SHOWN]
        originals = [np.clip(case.image[len(case.image) // 2], 0, 1) for case in cases]
        here = site.name in targets
        names = (
            {"the source": f"to_source.{site.name}"}
            if here
            else {target: f"from_source.{target}" for target in targets}
        )
        rows = [[image.mean(0)] for image in originals]
        columns = [f"{site.name}"]
        for label, name in names.items():
            net = nets[name].to(scene.device)
            with torch.inference_mode():
                batch = torch.from_numpy(np.stack(originals)).to(scene.device)
                translated = net(batch).cpu().numpy()
            columns += [f"as {label}", "difference"]
            for row, original, image in zip(rows, originals, translated, strict=True):
                row += [image.mean(0), (image - original).mean(0)]
        return [
            ImageGrid(
                name="translation",
                title=f"Images of {site.name}, translated",
                caption="Test images, how the translator renders them, and what it changed.",
                images=rows,
                columns=columns,
                rows=[case.subject for case in cases],
                signed=frozenset(range(2, len(columns), 2)),
            )
        ]


def _add_penalty(gradients: Gradients, nets: Networks, budget: Budget) -> None:
    """Add those of the strategy's penalty, in place. In the form ``exact`` each domain's part of L
    has it; a term that holds weights near those received is flat there, and changes nothing."""
    penalty = budget.step.penalty(nets, {})
    if penalty is not None:
        add(gradients, gradients_of(penalty, list(gradients), nets))
