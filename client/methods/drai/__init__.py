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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import nn

from fedshift import UserError, derive_seed
from fedshift.client.contract.illustrations import Illustration, ImageGrid
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
from fedshift.client.gan import is_collapsed
from fedshift.client.methods.base import Segmenting
from fedshift.client.methods.drai.content_preserving import Transform, change
from fedshift.client.methods.drai.disentangling import Codes, cross_image_consistency
from fedshift.client.methods.drai.dual_inference import (
    Batch,
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
from fedshift.client.networks.halving import check_halvings
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.client.training import (
    permuted,
    predict_slices,
)
from fedshift.protocol.frechet import frechet_distances, pool_moments
from fedshift.protocol.settings import setting
from fedshift.sites.types import Case, SiteData

Gaussian = tuple[torch.Tensor, torch.Tensor]
"""A mean (D,) and a root (D, D) of a covariance: mean + root e has both, for e ~ N(0, I)."""

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
BATCH = 32
"""Slices a forward pass where nothing is trained; it bounds memory."""
SHOWN = 4
"""Images a side of the grids of pictures."""


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

    def bound_to_rounds(self, rounds: int) -> str:
        """Whether it trains at all: in a run that is too short for the segmentation it does not."""
        return "" if rounds > self.generation_rounds else "trains nothing in so short a run"

    def fit(
        self, site: SiteData, nets: Networks, bank: StatisticsBank, budget: Budget
    ) -> FitReport:
        """Train what the round is for; publish moments as the networks it was sent see them.

        Raises :class:`fedshift.UserError` when the run is too short, or training diverged or
        collapsed.
        """
        if budget.rounds <= self.generation_rounds:
            raise UserError(
                f"rounds={budget.rounds} leaves none for the segmentation after "
                f"method.generation_rounds={self.generation_rounds}"
            )
        for net in nets.values():
            net.to(budget.device)
        slices = _Slices(site, self.size_bins, self.largest_size)
        published = self._moments(slices, nets, budget)
        if budget.round <= self.generation_rounds:
            report = self._generate(slices, nets, budget)
        else:
            measured = self._measure(site, nets, bank, budget) | _pooled(bank)
            styles = _gaussians({**bank, site.name: published}, "style")
            restyling = _Restyling(self, nets, styles)
            report = self.train_segmenter(site, nets, restyling, budget)
            report.metrics |= measured
        # What untrained encoders call a style is none.
        if budget.round > 1:
            report.statistics, report.summarised = published, len(slices)
        return report

    def _generate(self, slices: _Slices, nets: Networks, budget: Budget) -> FitReport:
        """Adversarial training: each step one of the discriminators, then one of all else."""
        device = budget.device
        for net in nets.values():
            net.train()
        players = [name for name in PLAYERS if self._trains(name, slices)]
        judges = [name for name in JUDGES if self._trains(name, slices)]
        optimizers = [
            torch.optim.Adam(_parameters(nets, names), lr=lr, betas=BETAS, fused=True)
            for names, lr in ((judges, self.judge_lr), (players, self.generator_lr))
        ]
        scalers = [torch.amp.GradScaler(device.type, enabled=budget.amp) for _ in optimizers]

        def descend(turn: int, loss: torch.Tensor) -> None:
            optimizers[turn].zero_grad()
            scalers[turn].scale(loss).backward()
            scalers[turn].step(optimizers[turn])
            scalers[turn].update()

        generator = torch.Generator().manual_seed(derive_seed(budget.seed, "codes"))
        seed = derive_seed(budget.seed, "generation batches")
        totals: dict[str, torch.Tensor] = {}
        for batch in slices.batches(self.generator_batch, budget.steps, seed, device):
            doubled = batch.with_copy(change(batch.images, self.transform, generator))
            with torch.autocast(device.type, dtype=torch.float16, enabled=budget.amp):
                game = play(doubled, nets, generator)
                judged = judges_loss(game.detached(), nets)
            descend(0, judged)
            with _held(nets, judges):
                with torch.autocast(device.type, dtype=torch.float16, enabled=budget.amp):
                    losses = players_losses(
                        game, nets, self.constraints, cycle=self.cycle, kl=self.kl
                    )
                if budget.penalty is not None:
                    losses["penalty"] = budget.penalty(nets)
                descend(1, torch.stack([*losses.values()]).sum())
            for name, loss in {**losses, "judges": judged}.items():
                totals[name] = totals.get(name, 0) + loss.detach()
        metrics = {name: float(total) / budget.steps for name, total in totals.items()}
        trained = _parameters(nets, [*players, *judges])
        finite = torch.stack([p.isfinite().all() for p in trained]).all()
        if not finite or not all(map(math.isfinite, metrics.values())):
            raise UserError(
                f"the generator's training diverged in round {budget.round}: lower "
                f"method.generator_lr (now {self.generator_lr:g}) and method.judge_lr (now "
                f"{self.judge_lr:g})"
            )
        if budget.round == self.generation_rounds:
            self._check_variety(slices, nets, budget)
        return FitReport(dict.fromkeys([*players, *judges], len(slices)), metrics)

    def _check_variety(self, slices: _Slices, nets: Networks, budget: Budget) -> None:
        """Raise :class:`fedshift.UserError` when all generated images are nearly the same."""
        generator = torch.Generator().manual_seed(derive_seed(budget.seed, "variety"))
        _evaluate(nets)
        with torch.no_grad():
            batch = next(slices.once(budget.device))
            if is_collapsed(play(batch, nets, generator).generated, batch.images):
                raise UserError(
                    f"the generator collapsed: by round {budget.round} its images hardly differ; "
                    "train it longer (method.generation_rounds, local_steps), or lower "
                    f"method.generator_lr (now {self.generator_lr:g})"
                )

    def _trains(self, name: str, slices: _Slices) -> bool:
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
            own, content = self._codes(nets, images)
            return images + (generator(styles, content) - generator(own, content))

    def _codes(self, nets: Networks, images: torch.Tensor) -> Codes:
        return nets["style_encoder"](images).mean, nets["content_encoder"](images).mean

    def _moments(self, slices: _Slices, nets: Networks, budget: Budget) -> dict[str, np.ndarray]:
        """Means and covariances of the site's codes and, once there is a task encoder, of its
        features of the site's images and of generated ones; and of how many images."""
        generator = torch.Generator().manual_seed(derive_seed(budget.seed, "moments"))
        found: dict[str, list[torch.Tensor]] = {"style": [], "content": []}
        if budget.round > self.generation_rounds + 1:
            found |= {"real": [], "generated": []}
        _evaluate(nets)
        with torch.no_grad():
            for batch in slices.once(budget.device):
                style, content = self._codes(nets, batch.images)
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
        images = _stacked(site.splits["val"])
        if len(images) < 2:
            images = _stacked(site.splits["train"])
        if len(images) < 2:
            return {}
        _evaluate(nets)
        with torch.no_grad():
            pixels = torch.from_numpy(images).to(budget.device)
            codes = self._codes(nets, pixels)
            reconstructed = nets["generator"](*codes)
            consistency = partial(
                cross_image_consistency, partial(self._codes, nets), nets["generator"], codes
            )
            # Neighbours are slices of one subject: pair with those half the list away.
            style, content = (code.roll(len(images) // 2, dims=0) for code in codes)
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
                    _draw(_gaussians(others, code), len(images), generator).to(budget.device)
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
        """Samples of the style with the content held (the paper's Fig. 2), hybrids of the site's
        images (Fig. 3), and its images in the styles of the other sites."""
        test = [case for case in site.splits["test"] if case.labelled.any()]
        if not test:
            return []
        for net in nets.values():
            net.to(scene.device)
        _evaluate(nets)
        # One slice a subject, the middle one that has a label.
        chosen = [(c, np.flatnonzero(c.labelled)[c.labelled.sum() // 2]) for c in test[:SHOWN]]
        pixels = np.stack([np.asarray(case.image[s], np.float32) for case, s in chosen])
        names = [case.id for case, _ in chosen]
        generator = torch.Generator().manual_seed(derive_seed(scene.seed, "illustrations"))
        with torch.no_grad():
            images = torch.from_numpy(pixels).to(scene.device)
            style, content = self._codes(nets, images)
            sampled = torch.randn(SHOWN, self.style, generator=generator).to(scene.device)
            grids = [
                ImageGrid(
                    "samples",
                    "Content held, style sampled",
                    "The first column is an image; the others have its content code and a style "
                    "code drawn from the prior.",
                    _table(images, self._every(nets, content, sampled)),
                    ["image", *(f"sample {n + 1}" for n in range(SHOWN))],
                    names,
                ),
                ImageGrid(
                    "hybrids",
                    "Hybrids: content of the row, style of the column",
                    "Generated from the content code of the row's image and the style code of the "
                    "column's; on the diagonal are reconstructions.",
                    _table(images, self._every(nets, content, style)),
                    ["image", *(f"style of {name}" for name in names)],
                    names,
                ),
            ]
            known = {
                name: torch.from_numpy(found["style_mean"]).float().to(scene.device)
                for name, found in sorted(scene.bank.items())
                if name != site.name and found
            }
            if known:
                columns = [
                    self.restyle(nets, images, mean.expand(len(images), -1))
                    for mean in known.values()
                ]
                grids.append(
                    ImageGrid(
                        "restyled",
                        "In the mean style of other sites",
                        "The image, with its own style exchanged for another site's: what the "
                        "segmentation is trained on with method.use=hybrids.",
                        _table(images, torch.stack(columns, dim=1)),
                        ["image", *known],
                        names,
                    )
                )
        return list(grids)

    def _every(self, nets: Networks, contents: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
        """Images (R, C, 1, H, W) of R content codes, each in C styles."""
        rows = [nets["generator"](styles, content.expand(len(styles), -1)) for content in contents]
        return torch.stack(rows)


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
            styles = _draw(self.sites, count, generator).to(images.device)
            restyled = self.method.restyle(self.nets, images[:count], styles)
            images = torch.cat([restyled, images[count:]])
        return self.method.augmentation(images, labels, generator, warp)


class _Slices:
    """All slices of a site's training split, and the conditions of those whose label tells of every
    structure and pixel."""

    def __init__(self, site: SiteData, bins: int, largest: float) -> None:
        self._images: list[np.ndarray] = []
        length = (bins + 1) * len(site.structures)
        conditions: list[np.ndarray] = []
        for case in site.splits["train"]:
            # Plain views of the memory maps: indexing np.memmap itself costs several times more.
            self._images += list(np.asarray(case.image))
            complete = case.annotates is None and not case.ignores
            for index, labelled in enumerate(case.labelled):
                if labelled and complete and "mask" in case.labels:
                    label = np.asarray(case.labels["mask"].grid[index])
                    conditions.append(condition(label, len(site.structures), bins, largest))
                else:
                    conditions.append(np.full(length, np.nan, np.float32))
        self._conditions = np.stack(conditions)
        self._known = np.isfinite(self._conditions[:, 0])

    def __len__(self) -> int:
        return len(self._images)

    @property
    def conditioned(self) -> bool:
        """Whether any slice has a condition."""
        return bool(self._known.any())

    def batches(self, size: int, steps: int, seed: int, device: torch.device) -> Iterator[Batch]:
        """Yield ``steps`` batches of ``size`` slices, or all of them where that is fewer."""
        for chosen in permuted(len(self), size, steps, seed):
            yield self._batch(chosen, device)

    def once(self, device: torch.device) -> Iterator[Batch]:
        """Every slice once, in order, up to :data:`BATCH` at a time."""
        for start in range(0, len(self), BATCH):
            yield self._batch(range(start, min(start + BATCH, len(self))), device)

    def _batch(self, chosen: Iterable[int], device: torch.device) -> Batch:
        rows = list(chosen)
        images = torch.from_numpy(np.stack([self._images[i] for i in rows]))
        conditions = torch.from_numpy(self._conditions[rows])
        known = torch.from_numpy(np.flatnonzero(self._known[rows]))
        return Batch(images.to(device), conditions.to(device), known.to(device))


def condition(label: np.ndarray, structures: int, bins: int, largest: float) -> np.ndarray:
    """The condition t of a slice's ``label`` (H, W): for each structure a one-hot vector of
    ``bins + 1``, in one (structures * (bins + 1),) float32.

    The first says that the structure is absent, the others in which of ``bins`` equal parts of 0
    to ``largest`` its size lies; larger ones are in the last. Its size is the square root of its
    share of the pixels.
    """
    areas = np.bincount(label.ravel(), minlength=structures + 1)[1 : structures + 1]
    sizes = np.sqrt(areas / label.size)
    part = np.minimum((sizes / largest * bins).astype(int), bins - 1)
    found = np.zeros((structures, bins + 1), np.float32)
    found[np.arange(structures), np.where(areas > 0, part + 1, 0)] = 1
    return found.ravel()


def _parameters(nets: Networks, names: Iterable[str]) -> list[nn.Parameter]:
    return [parameter for name in names for parameter in nets[name].parameters()]


@contextmanager
def _held(nets: Networks, names: Sequence[str]) -> Iterator[None]:
    """Compute no gradient of these networks' weights; it still flows through them."""
    for name in names:
        nets[name].requires_grad_(False)
    try:
        yield
    finally:
        for name in names:
            nets[name].requires_grad_(True)


def _gaussians(bank: StatisticsBank, code: str) -> list[Gaussian]:
    """The distributions of a ``code`` at the sites that published one, in order of their names."""
    gaussians = []
    for _, found in sorted(bank.items()):
        if found:
            values, vectors = np.linalg.eigh(found[f"{code}_covariance"])
            root = torch.from_numpy(vectors * np.sqrt(np.maximum(values, 0.0)))
            gaussians.append((torch.from_numpy(found[f"{code}_mean"]).float(), root.float()))
    return gaussians


def _draw(sites: Sequence[Gaussian], count: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` codes (count, D) on the CPU, each of a site drawn at random."""
    chosen = torch.randint(len(sites), (count,), generator=generator).tolist()
    noise = torch.randn(count, len(sites[0][0]), generator=generator)
    return torch.stack([sites[k][0] + sites[k][1] @ e for k, e in zip(chosen, noise, strict=True)])


def _pooled(bank: StatisticsBank) -> dict[str, float]:
    """What only all sites together can say, from the moments they published last round: the share
    of each code's variance that lies between the sites, and the Frechet distance between the task
    encoder's features of all images and of all generated ones; what was not published is left out.
    """
    metrics = {}
    published = [found for _, found in sorted(bank.items()) if found]
    if published:
        counts = np.concatenate([found["count"] for found in published])
        for code in ("style", "content"):
            _, covariance = _pool(published, code)
            within = counts @ [np.trace(found[f"{code}_covariance"]) for found in published]
            metrics[f"{code}_between_sites"] = float(
                1 - within / counts.sum() / max(np.trace(covariance), 1e-12)
            )
    published = [found for found in published if "real_mean" in found]
    if published:
        mean, covariance = _pool(published, "real")
        means, covariances = _pool(published, "generated")
        (distance,) = frechet_distances(mean, covariance, means[None], covariances[None])
        metrics["frechet"] = float(distance)
    return metrics


def _pool(
    published: Sequence[Mapping[str, np.ndarray]], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and covariance of what several sites published under ``name``, put together."""
    _, mean, covariance = pool_moments(
        np.concatenate([found["count"] for found in published]),
        np.stack([found[f"{name}_mean"] for found in published]),
        np.stack([found[f"{name}_covariance"] for found in published]),
    )
    return mean, covariance


def _stacked(cases: Sequence[Case]) -> np.ndarray:
    """All slices of ``cases``, (S, C, H, W) float32; S may be 0."""
    images = [np.asarray(case.image, np.float32) for case in cases]
    return np.concatenate(images) if images else np.empty((0, 0, 0, 0), np.float32)


def _evaluate(nets: Networks) -> None:
    for net in nets.values():
        net.eval()


def _table(first: torch.Tensor, others: torch.Tensor) -> list[list[np.ndarray]]:
    """``first`` (R, C, H, W) and ``others`` (R, N, C, H, W) as R rows of N + 1 images."""
    rows = torch.cat([first.unsqueeze(1), others], dim=1).mean(2).cpu().numpy()
    return [list(row) for row in rows]
