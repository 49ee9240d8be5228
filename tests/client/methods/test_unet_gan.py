"""Unet-GAN on small phantoms: its federated forms against centralised training, its direction."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from kit.cases import mask, segmentation
from kit.repository import ROOT
from kit.steps import Penalised
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from fedshift import UserError
from fedshift.client.augmentation import Augmentation
from fedshift.client.contract.method import Budget, FitReport, Networks, Scene
from fedshift.client.contract.step import Step
from fedshift.client.methods import METHODS
from fedshift.client.methods.unet_gan import UnetGAN
from fedshift.client.methods.unet_gan.domain import DomainSlices
from fedshift.client.methods.unet_gan.gradients import BETAS
from fedshift.client.methods.unet_gan.side import Side
from fedshift.client.methods.unet_gan.ssim import ssim
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.sites import DataSettings, load_federation, open_site
from fedshift.sites.types import SiteData

CPU = torch.device("cpu")
SEED = 300
"""Of the phantoms."""
TARGET = "vendor_c"
SMALL = UnetGAN(
    width=4,
    depth=3,
    translator_width=4,
    judge_width=4,
    segmenter_rounds=1,
    translation_rounds=40,
    images=3,
)
FIRST = SMALL.segmenter_rounds + 1
"""The first round of the translation."""


def phantom_sites(
    *vendors: str, subjects: int = 5, size: int = 32, target: str = TARGET
) -> dict[str, SiteData]:
    """Cardiac phantoms: one site each of ``vendor_a`` and of ``vendors``, labelled, and of
    ``target``, without labels."""
    federation = {
        "kind": "phantom",
        "anatomy": "cardiac",
        "shift": 1.0,
        "sites": {vendor: [vendor] for vendor in ("vendor_a", *vendors, target)},
        "subjects": subjects,
        "slices": 2,
        "size": size,
    }
    data = DataSettings(unlabelled_sites=(target,))
    loaded = load_federation(federation, data, SEED)
    return {site.name: open_site(site, loaded.parts, data, SEED) for site in loaded.sites}


@pytest.fixture(scope="module")
def sites() -> dict[str, SiteData]:
    return phantom_sites()


def task_of(sites: Mapping[str, SiteData]) -> Segmentation:
    targets = [name for name, site in sites.items() if not site.counts("train")["labelled"]]
    site = next(iter(sites.values()))
    return Segmentation(site.parts, size=site.size, unlabelled=tuple(targets))


def new_networks(method: UnetGAN, sites: Mapping[str, SiteData], seed: int = 0) -> Networks:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method.networks(task_of(sites))


TASK = segmentation("LV cavity", "myocardium", "RV cavity")


def budget(round: int, seed: int = 0, steps: int = 2, **changes: object) -> Budget:
    """What a site is allowed in ``round``; ``steps`` are the U-Net's."""
    return Budget(TASK, steps, seed + 1000 * round, CPU, round=round, rounds=200, **changes)


class Federation:
    """Rounds as the coordinator makes them, with plain sums and torch's Adam."""

    def __init__(self, method: UnetGAN, sites: Mapping[str, SiteData], nets: Networks) -> None:
        self.method, self.sites, self.nets = method, sites, nets
        self.sharing = method.sharing(task_of(sites))
        self.optimizers = {
            name: torch.optim.Adam(
                nets[name].parameters(), adam.lr, (adam.beta1, adam.beta2), adam.eps
            )
            for name, sharing in self.sharing.items()
            if (adam := sharing.adam) is not None
        }
        self.bank: dict[str, dict[str, np.ndarray]] = {}
        self.memory: dict[str, dict[str, np.ndarray]] = {name: {} for name in sites}

    def round(self, number: int, seed: int = 0, steps: int = 2) -> dict[str, FitReport]:
        """One round at all sites; returns their reports."""
        start = copy.deepcopy({name: net.state_dict() for name, net in self.nets.items()})
        sent: dict[str, dict[str, list[tuple[int, list[torch.Tensor]]]]] = {}
        reports = {}
        for site, data in self.sites.items():
            for name, net in self.nets.items():
                net.load_state_dict(start[name])
                net.zero_grad(set_to_none=True)
            allowed = budget(number, seed, steps, memory=self.memory[site])
            report = reports[site] = self.method.fit(data, self.nets, self.bank, allowed)
            for name, examples in report.trained.items():
                values = [
                    p.grad if self.sharing[name].adam else p for p in self.nets[name].parameters()
                ]
                values = [value.detach().clone() for value in values]
                sent.setdefault(name, {}).setdefault(report.domain, []).append((examples, values))
        self.bank |= {site: r.statistics for site, r in reports.items() if r.statistics}
        for name, net in self.nets.items():
            net.load_state_dict(start[name])
            if name in sent:
                self._combine(name, sent[name], number)
        return reports

    def _combine(
        self, name: str, sent: dict[str, list[tuple[int, list[torch.Tensor]]]], number: int
    ) -> None:
        means = []
        for updates in sent.values():
            total = sum(examples for examples, _ in updates)
            shares = [[examples / total * v for v in values] for examples, values in updates]
            means.append([sum(group) for group in zip(*shares, strict=True)])
        summed = [sum(group) for group in zip(*means, strict=True)]
        parameters = list(self.nets[name].parameters())
        adam = self.sharing[name].adam
        for parameter, value in zip(parameters, summed, strict=True):
            if adam is not None:
                parameter.grad = value
            else:
                parameter.data = value / len(means)
        if adam is not None:
            self.optimizers[name].param_groups[0]["lr"] = adam.rate(number)
            self.optimizers[name].step()


def weights(nets: Networks, *names: str) -> torch.Tensor:
    chosen = names or tuple(nets)
    return torch.cat([p.detach().flatten() for name in chosen for p in nets[name].parameters()])


def centralised_losses(
    method: UnetGAN, nets: Networks, x: torch.Tensor, t: torch.Tensor, noise: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The generators' and the discriminators' losses of Eq. 5 with all images in one place, written
    from the paper and not from the method: cross-entropies against labels, over both domains."""
    to_source, from_source = nets[f"to_source.{TARGET}"], nets[f"from_source.{TARGET}"]
    d_source, d_target = nets[f"judge_source.{TARGET}"], nets[f"judge_target.{TARGET}"]
    segmenter = nets["segmenter"]

    def entropy(logits: torch.Tensor, label: float) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

    def kept(image: torch.Tensor, fake: torch.Tensor, back: nn.Module) -> torch.Tensor:
        other = back(fake) if method.compare == "reconstructed" else fake
        blocks = [2, 3]  # depth 3 with one block a level: blocks 3 and 4 lie deepest
        before, after = segmenter.encode(image), segmenter.encode(other)
        features = sum(((before[b].detach() - after[b]) ** 2).mean() for b in blocks)
        similarity = ssim(image, other, alpha=0.1, beta=0.1, gamma=1.0).mean()
        return 15 * features + 5 * (1 - similarity)

    fake_t, fake_s = from_source(x), to_source(t)
    generators = (
        entropy(d_target(fake_t + noise[1]), 1)
        + entropy(d_source(fake_s + noise[3]), 1)
        + kept(x, fake_t, to_source)
        + kept(t, fake_s, from_source)
    )
    fake_t, fake_s = fake_t.detach(), fake_s.detach()
    judges = (
        entropy(d_source(x + noise[0]), 1)
        + entropy(d_target(fake_t + noise[1]), 0)
        + entropy(d_target(t + noise[2]), 1)
        + entropy(d_source(fake_s + noise[3]), 0)
    )
    return generators, judges


def in_double(sites: Mapping[str, SiteData]) -> dict[str, SiteData]:
    """The sites with images in double precision."""
    found = {}
    for name, site in sites.items():
        train = tuple(replace(c, image=c.image.astype(np.float64)) for c in site.splits["train"])
        found[name] = replace(site, splits={**site.splits, "train": train})
    return found


@pytest.mark.parametrize("compare", ["reconstructed", "translated"])
def test_exact_form_is_centralised_training(sites: dict[str, SiteData], compare: str) -> None:
    """Thirty rounds on the same batches leave every parameter within 1e-6 of a loop that has both
    sites' images and torch's Adam; the learning rate begins to fall on the way. In double
    precision and in small steps, because the game is chaotic: at the default rate a difference of
    rounding trebles in every step."""
    method = replace(
        SMALL,
        compare=compare,
        translator_lr=5e-4,
        judge_lr=2e-4,
        augmentation=Augmentation(affine=False),
    )
    sites = in_double(sites)
    nets = {name: net.double() for name, net in new_networks(method, sites).items()}
    start, central = weights(nets), copy.deepcopy(nets)
    federation = Federation(method, sites, nets)
    translators = [f"to_source.{TARGET}", f"from_source.{TARGET}"]
    judges = [f"judge_source.{TARGET}", f"judge_target.{TARGET}"]
    central["segmenter"].eval().requires_grad_(False)
    groups = [
        [p for n in names for p in central[n].parameters()] for names in (translators, judges)
    ]
    rates = [method.translator_lr, method.judge_lr]
    optimizers = [torch.optim.Adam(group, betas=BETAS) for group in groups]
    for number in range(FIRST, FIRST + 30):
        federation.round(number)
        batches, noise = [], []
        for name in ("vendor_a", TARGET):
            slices = DomainSlices(sites[name], method.augmentation)
            ((images, generator),) = slices.batches(method.images, 1, TARGET, budget(number))
            batches.append(images)
            noise += list(method.judge_noise * torch.randn((2, *images.shape), generator=generator))
        losses = centralised_losses(method, central, *batches, noise)
        gradients = [torch.autograd.grad(losses[0], groups[0], retain_graph=True)]
        gradients.append(torch.autograd.grad(losses[1], groups[1]))
        for optimizer, group, values, rate in zip(
            optimizers, groups, gradients, rates, strict=True
        ):
            # 40 rounds: constant up to round 21, then by a twenty-first less each.
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (42 - number) / 21)
            for parameter, value in zip(group, values, strict=True):
                parameter.grad = value
            optimizer.step()
    assert (weights(nets) - start).abs().max() > 5e-3
    torch.testing.assert_close(weights(nets), weights(central), rtol=0, atol=1e-6)


def mean_dice(method: UnetGAN, nets: Networks, site: SiteData, stage: str) -> float:
    """Over the structures of the test split's cases."""
    found = []
    for case in site.splits["test"]:
        scene = Scene(TASK, site.name, CPU, stage=stage)
        predicted = method.predict(nets, case.image, scene).argmax(1)
        for index in range(1, len(site.parts) + 1):
            guess, truth = predicted == index, mask(case) == index
            found.append(2 * (guess & truth).sum() / (guess.sum() + truth.sum()))
    return float(np.mean(found))


def test_translation_helps_a_target_that_the_u_net_does_not_know() -> None:
    """The direction of the paper's Table 1, phantom vendor_b after vendor_a, seed 300: at least
    0.06 Dice above the same U-Net without translation (0.11 when written), without a label of the
    target. Before about a hundred steps there is no gain."""
    sites = phantom_sites(subjects=16, size=48, target="vendor_b")
    method = UnetGAN(
        width=6, translator_width=6, judge_width=12, segmenter_rounds=2, translation_rounds=125
    )
    nets = new_networks(method, sites, SEED)
    federation = Federation(method, sites, nets)
    for number in range(1, 128):
        federation.round(number, SEED, steps=40)
    target = sites["vendor_b"]
    assert not target.counts("train")["labelled"]
    clean = mean_dice(method, nets, target, "source")
    assert mean_dice(method, nets, target, "") > clean + 0.06


def side_gradients(
    method: UnetGAN, sites: Mapping[str, SiteData], nets: Networks, domain: str
) -> dict[str, torch.Tensor]:
    """The norm of each network's gradient, computed at ``domain``'s site."""
    site = sites["vendor_a" if domain == "source" else domain]
    ((images, generator),) = DomainSlices(site, method.augmentation).batches(
        3, 1, TARGET, budget(2)
    )
    side = Side.of(TARGET, domain)
    found, _ = method.gradients(side, images, nets, generator)
    return {name: sum(v.square().sum() for v in values).sqrt() for name, values in found.items()}


def test_translated_comparison_gives_the_back_translator_no_gradient(
    sites: dict[str, SiteData],
) -> None:
    nets = new_networks(SMALL, sites)
    translated = replace(SMALL, compare="translated")
    for domain, back in (("source", f"to_source.{TARGET}"), (TARGET, f"from_source.{TARGET}")):
        assert side_gradients(translated, sites, nets, domain)[back] == 0
        assert side_gradients(SMALL, sites, nets, domain)[back] > 0
        cycle = replace(translated, cycle_weight=1.0)
        assert side_gradients(cycle, sites, nets, domain)[back] > 0


def test_step_along_the_discriminators_gradient_parts_real_from_translated(
    sites: dict[str, SiteData],
) -> None:
    """A small step down the sum of both sites' gradients widens the gap between the real and the
    translated logits of D_S and of D_T; the U-Net gets no gradient and stays trainable."""
    nets = new_networks(SMALL, sites)
    batches: dict[str, torch.Tensor] = {}
    parts: dict[str, list[list[torch.Tensor]]] = {}
    for domain, site in (("source", "vendor_a"), (TARGET, TARGET)):
        slices = DomainSlices(sites[site], SMALL.augmentation)
        ((images, generator),) = slices.batches(4, 1, TARGET, budget(2))
        batches[domain] = images
        side = Side.of(TARGET, domain)
        found, _ = SMALL.gradients(side, images, nets, generator)
        assert all(p.grad is None and p.requires_grad for p in nets["segmenter"].parameters())
        for name in side.judges:
            parts.setdefault(name, []).append(found[name])
    with torch.no_grad():
        for domain, other in (("source", TARGET), (TARGET, "source")):
            side = Side.of(TARGET, domain)
            judge, translated = nets[side.judge_here], nets[side.back](batches[other])
            gaps = []
            for _ in range(2):
                gaps.append(judge(batches[domain]).mean() - judge(translated).mean())
                both = zip(judge.parameters(), *parts[side.judge_here], strict=True)
                for parameter, first, second in both:
                    parameter.sub_(1e-3 * (first + second))
            assert gaps[1] > gaps[0]


def test_replay_trains_each_discriminator_at_its_own_domain(sites: dict[str, SiteData]) -> None:
    replay = replace(SMALL, form="replay")
    nets = new_networks(replay, sites)
    reports = Federation(replay, sites, nets).round(FIRST)
    translators = {f"to_source.{TARGET}", f"from_source.{TARGET}"}
    assert set(reports["vendor_a"].trained) == translators | {f"judge_source.{TARGET}"}
    assert set(reports[TARGET].trained) == translators | {f"judge_target.{TARGET}"}
    sharing = replay.sharing(task_of(sites))
    assert {sharing[name].kind for name in translators} == {"balanced"}
    assert sharing[f"judge_source.{TARGET}"].kind == "broadcast"


@pytest.mark.parametrize("form", ["average", "replay"])
def test_local_forms_step_at_once(sites: dict[str, SiteData], form: str) -> None:
    method = replace(SMALL, form=form)
    nets = new_networks(method, sites)
    before = weights(nets)
    federation = Federation(method, sites, nets)
    federation.round(FIRST)
    assert not torch.equal(weights(nets), before)
    assert not federation.bank


def test_stale_form_publishes_first_and_then_adds_the_others_gradient() -> None:
    """With one local step from equal weights, round two's step at every site is Adam's first step
    along its own gradient plus the other domain's published one: two source sites' mean is
    weighted by their slices, and the target's counts whole."""
    sites = phantom_sites("vendor_b")
    first = sites["vendor_a"]
    sites["vendor_a"] = replace(
        first, splits={**first.splits, "train": first.splits["train"][:1]}
    )  # two slices there, six at vendor_b
    method = replace(SMALL, form="stale", local_iterations=1)
    nets = new_networks(method, sites)
    federation = Federation(method, sites, nets)
    start = copy.deepcopy(nets)
    reports = federation.round(FIRST)
    assert torch.equal(weights(nets), weights(start))
    assert set(reports) == set(federation.bank)
    assert {name: int(bank["examples"]) for name, bank in federation.bank.items()} == {
        "vendor_a": 2,
        "vendor_b": 6,
        TARGET: 6,
    }
    name, key = f"to_source.{TARGET}", "head.weight"
    published = {site: bank[f"gradient/{name}/{key}"] for site, bank in federation.bank.items()}
    source = (2 * published["vendor_a"] + 6 * published["vendor_b"]) / 8
    for site, others in (("vendor_a", published[TARGET]), (TARGET, source)):
        nets = copy.deepcopy(start)
        allowed = budget(FIRST + 1)
        domain = TARGET if site == TARGET else "source"
        slices = DomainSlices(sites[site], method.augmentation)
        ((images, generator),) = slices.batches(method.images, 1, TARGET, allowed)
        own, _ = method.gradients(Side.of(TARGET, domain), images, nets, generator)
        keys = [k for k, _ in nets[name].named_parameters()]
        total = own[name][keys.index(key)].numpy() + others
        report = method.fit(sites[site], nets, federation.bank, allowed)
        assert set(report.trained) == set(nets) - {"segmenter"}
        before = start[name].get_parameter(key).detach().numpy()
        after = nets[name].get_parameter(key).detach().numpy()
        step = method.translator_lr * total / (np.abs(total) + 1e-8)
        np.testing.assert_allclose(after, before - step, rtol=0, atol=1e-6)


def test_stale_moments_stay_at_the_site_from_round_to_round(sites: dict[str, SiteData]) -> None:
    """Two rounds of one step with the memory end elsewhere than with Adam begun afresh; the
    memory's step counter says two."""
    method = replace(SMALL, form="stale", local_iterations=1)
    ends = []
    for remembers in (True, False):
        nets = new_networks(method, sites)
        federation = Federation(method, sites, nets)
        for number in (FIRST, FIRST + 1, FIRST + 2):
            if not remembers:
                federation.memory = {name: {} for name in sites}
            federation.round(number)
        ends.append(weights(nets))
        steps = federation.memory[TARGET][f"step/to_source.{TARGET}/head.weight"]
        assert int(steps) == (2 if remembers else 1)
    assert not torch.equal(*ends)


def test_penalty_pulls_the_local_forms_back_and_leaves_the_published_gradient(
    sites: dict[str, SiteData],
) -> None:
    method = replace(SMALL, form="average", local_iterations=4)
    start = new_networks(method, sites)
    origin = {name: copy.deepcopy(net.state_dict()) for name, net in start.items()}

    def pull(nets: Mapping[str, nn.Module]) -> torch.Tensor:
        return 1e4 * sum(
            (p - origin[name][key]).square().sum()
            for name, net in nets.items()
            for key, p in net.named_parameters()
        )

    free, held = copy.deepcopy(start), copy.deepcopy(start)
    method.fit(sites["vendor_a"], free, {}, budget(FIRST))
    method.fit(sites["vendor_a"], held, {}, budget(FIRST, step=Penalised(pull)))
    assert (weights(held) - weights(start)).norm() < 0.8 * (weights(free) - weights(start)).norm()
    stale = replace(SMALL, form="stale")
    published = [
        stale.fit(sites["vendor_a"], copy.deepcopy(start), {}, budget(FIRST, step=step)).statistics
        for step in (Step(), Penalised(pull))
    ]
    for key in published[0]:
        np.testing.assert_array_equal(published[0][key], published[1][key])


def test_penalty_enters_the_gradients_that_the_exact_form_sends(
    sites: dict[str, SiteData],
) -> None:
    start = new_networks(SMALL, sites)

    def pull(nets: Mapping[str, nn.Module]) -> torch.Tensor:
        return sum(p.square().sum() for net in nets.values() for p in net.parameters())

    free, held = copy.deepcopy(start), copy.deepcopy(start)
    report = SMALL.fit(sites[TARGET], free, {}, budget(FIRST))
    SMALL.fit(sites[TARGET], held, {}, budget(FIRST, step=Penalised(pull)))
    assert report.trained
    for name in report.trained:
        for one, two in zip(free[name].parameters(), held[name].parameters(), strict=True):
            assert one.grad is not None and two.grad is not None
            torch.testing.assert_close(two.grad - one.grad, 2 * one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", ["exact", "stale", "average", "replay"])
def test_equal_seeds_give_equal_bits_whatever_the_global_generators(
    sites: dict[str, SiteData], form: str
) -> None:
    method = replace(SMALL, form=form)
    ends = {}
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        nets = new_networks(method, sites)
        federation = Federation(method, sites, nets)
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        for number in range(1, FIRST + 3):
            federation.round(number, seed)
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
        ends[seed, global_seed] = weights(nets)
    assert torch.equal(ends[0, 1], ends[0, 2])
    assert not torch.equal(ends[0, 1], ends[1, 1])


def test_rounds_have_their_order(sites: dict[str, SiteData]) -> None:
    """The U-Net first, at the labelled site alone; then the translation with the U-Net as it is;
    after its last round nothing."""
    nets = new_networks(SMALL, sites)
    federation = Federation(SMALL, sites, nets)
    reports = federation.round(1)
    assert reports["vendor_a"].trained == {"segmenter": 6}
    assert not reports[TARGET].trained
    segmenter = weights(nets, "segmenter")
    reports = federation.round(FIRST)
    assert reports["vendor_a"].domain == "source"
    assert reports[TARGET].domain == TARGET
    for report in reports.values():
        assert report.trained == dict.fromkeys(set(nets) - {"segmenter"}, 6)
    assert torch.equal(weights(nets, "segmenter"), segmenter)
    done = FIRST + SMALL.translation_rounds
    assert SMALL.fit(sites[TARGET], nets, {}, budget(done)) == FitReport()


def test_only_a_targets_images_are_translated_and_stage_source_translates_none(
    sites: dict[str, SiteData],
) -> None:
    nets = new_networks(SMALL, sites)
    image = sites[TARGET].splits["test"][0].image
    direct = SMALL.predict(nets, image, Scene(TASK, TARGET, CPU, stage="source"))
    for site in ("vendor_a", "vendor_d"):
        np.testing.assert_array_equal(SMALL.predict(nets, image, Scene(TASK, site, CPU)), direct)
    with torch.no_grad():
        translated = nets[f"to_source.{TARGET}"](torch.from_numpy(np.array(image)))
        expected = nets["segmenter"](translated).softmax(1).numpy()
    found = SMALL.predict(nets, image, Scene(TASK, TARGET, CPU))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - direct).max() > 0.01
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_collapsed_and_diverged_translations_are_refused_with_the_setting(
    sites: dict[str, SiteData],
) -> None:
    nets = new_networks(SMALL, sites)
    there = nets[f"to_source.{TARGET}"]
    there.head.bias.data[:] = 20.0  # white, whatever the image
    with pytest.raises(UserError, match=r"translation of vendor_c collapsed.*translator_lr"):
        SMALL.fit(sites[TARGET], nets, {}, budget(FIRST))
    there.head.bias.data[:] = float("nan")
    with pytest.raises(UserError, match=r"translation of vendor_c diverged.*translator_lr"):
        SMALL.fit(sites[TARGET], nets, {}, budget(FIRST))


def test_stopping_rule_looks_at_the_entropy_of_the_translated_images(
    sites: dict[str, SiteData],
) -> None:
    """At every tenth round the target publishes the lowest entropy so far and the looks since; no
    label is read, for there is none."""
    method = replace(SMALL, patience=2)
    nets = new_networks(method, sites)
    site, bank = sites[TARGET], {}
    with torch.no_grad():
        images = torch.from_numpy(np.concatenate([c.image for c in site.splits["val"]]))
        shares = nets["segmenter"](nets[f"to_source.{TARGET}"](images)).softmax(1)
        entropy = torch.distributions.Categorical(probs=shares.movedim(1, -1)).entropy().mean()
    for number, expected in ((9, None), (10, [entropy, 0]), (11, [entropy, 0]), (20, [entropy, 1])):
        report = method.fit(site, nets, bank, budget(SMALL.segmenter_rounds + number))
        published = report.statistics.get("uncertainty")
        if expected is None:
            assert published is None
        else:
            np.testing.assert_allclose(published, expected, rtol=1e-4)
            assert report.summarised == len(images)
            bank = {TARGET: report.statistics}
    bank = {TARGET: {"uncertainty": np.array([entropy + 1, 1.0])}}
    report = method.fit(site, nets, bank, budget(SMALL.segmenter_rounds + 20))
    np.testing.assert_allclose(report.statistics["uncertainty"], [entropy, 0], rtol=1e-4)


@pytest.mark.parametrize("form", ["exact", "stale"])
def test_settled_target_is_frozen_at_every_site(sites: dict[str, SiteData], form: str) -> None:
    nets = new_networks(SMALL, sites)
    for looks, trains in ((1.0, True), (2.0, False)):
        bank = {TARGET: {"uncertainty": np.array([0.1, looks])}}
        method = replace(SMALL, form=form, patience=2)
        for site in sites.values():
            # Of a stale round there is no gradient in this bank: it publishes its own first.
            report = method.fit(site, nets, bank, budget(FIRST))
            assert bool(report.trained or report.statistics) == trains
        off = replace(SMALL, form=form).fit(sites[TARGET], nets, bank, budget(FIRST))
        assert off.trained or off.statistics


def test_run_without_a_round_for_the_translation_is_refused(sites: dict[str, SiteData]) -> None:
    short = Budget(TASK, steps=1, seed=0, device=CPU, round=1, rounds=SMALL.segmenter_rounds)
    with pytest.raises(UserError, match=r"rounds=1 leaves none.*set rounds to 41"):
        SMALL.fit(sites["vendor_a"], new_networks(SMALL, sites), {}, short)


def test_every_target_has_networks_of_its_own() -> None:
    task = Segmentation(("disc",), unlabelled=("one", "two"))
    nets = UnetGAN().networks(task)
    assert list(nets) == [
        "segmenter",
        *(
            f"{kind}.{target}"
            for target in ("one", "two")
            for kind in ("from_source", "to_source", "judge_source", "judge_target")
        ),
    ]
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    assert 45e3 < count["to_source.one"] < 55e3
    assert 45e3 < count["judge_source.one"] < 60e3
    sharing = UnetGAN().sharing(task)
    assert set(sharing) == set(nets)
    assert sharing["segmenter"].kind == "broadcast"
    assert sharing["to_source.two"].domains == ("source", "two")
    rates = [sharing[f"{kind}.one"].adam.lr for kind in ("to_source", "judge_target")]
    assert rates == [UnetGAN().translator_lr, UnetGAN().judge_lr]


def test_pictures_show_what_was_changed(sites: dict[str, SiteData]) -> None:
    nets = new_networks(SMALL, sites)
    for name in ("vendor_a", TARGET):
        (grid,) = SMALL.illustrate(sites[name], nets, Scene(TASK, name, CPU))
        assert len(grid.images) == len(grid.rows) == len(sites[name].splits["test"])
        for row in grid.images:
            original, translated, difference = row
            np.testing.assert_allclose(difference, translated - original, atol=1e-6)
            assert np.abs(difference).max() > 0.01
        assert grid.signed == {2}
        assert len(grid.columns) == 3
    assert not SMALL.illustrate(
        replace(sites["vendor_a"], role="unseen"), nets, Scene(TASK, "x", CPU)
    )


def test_every_setting_is_in_the_config_with_the_codes_default() -> None:
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/method/unet_gan.yaml"))
    assert isinstance(config, dict)
    settings = config["method"]
    assert METHODS.build(settings) == UnetGAN()
    assert set(settings) - {"name"} == set(UnetGAN.__dataclass_fields__) - {"augmentation"}
    assert config["rounds"] == UnetGAN().segmenter_rounds + UnetGAN().translation_rounds


def test_paper_preset_is_the_papers() -> None:
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/_presets/paper/unet_gan.yaml"))
    assert isinstance(config, dict)
    method = METHODS.build({"name": "unet_gan", **config["method"]})
    assert isinstance(method, UnetGAN)
    assert (method.lr, method.translator_lr, method.judge_lr) == (1e-4, 1e-5, 1e-5)
    assert (method.feature_weight, method.ssim_weight) == (15, 5)
    # 35 epochs of 3920 images, in batches of 10.
    assert method.segmenter_rounds * config["local_steps"] * method.batch == 35 * 3920
    assert config["rounds"] == method.segmenter_rounds + method.translation_rounds
    segmenter = method.networks(Segmentation(("disc",)))["segmenter"]
    assert len(segmenter.encoder) == 9  # blocks 7 and 9 are the deepest level's first and last
    assert [method.depth - 1, method.blocks] == [3, 2]


def test_mixed_precision_points_the_same_way(sites: dict[str, SiteData]) -> None:
    """bfloat16 has eight bits: of every network the gradients' cosine with single precision's is
    above 0.8 (0.87 when written)."""
    nets = new_networks(SMALL, sites)
    for domain, site in (("source", "vendor_a"), (TARGET, TARGET)):
        side, found = Side.of(TARGET, domain), []
        for amp in (False, True):
            slices = DomainSlices(sites[site], SMALL.augmentation)
            ((images, generator),) = slices.batches(3, 1, TARGET, budget(FIRST))
            gradients, _ = SMALL.gradients(side, images, nets, generator, amp=amp)
            found.append({k: torch.cat([v.flatten() for v in vs]) for k, vs in gradients.items()})
        for name, exact in found[0].items():
            assert found[1][name].dtype == torch.float32
            assert F.cosine_similarity(exact, found[1][name], dim=0) > 0.8
            assert not torch.equal(exact, found[1][name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", ["exact", "stale"])
def test_gpu_follows_the_cpu(sites: dict[str, SiteData], form: str) -> None:
    """What a source site sends in one round, there and here."""
    method, sent = replace(SMALL, form=form), []
    for device in (CPU, torch.device("cuda")):
        nets = new_networks(method, sites)
        allowed = Budget(TASK, steps=2, seed=3, device=device, round=FIRST, rounds=50)
        report = method.fit(sites["vendor_a"], nets, {}, allowed)
        if form == "exact":
            found = [p.grad for name in sorted(report.trained) for p in nets[name].parameters()]
        else:
            found = [torch.as_tensor(v) for _, v in sorted(report.statistics.items())]
        sent.append(torch.cat([value.flatten().float().cpu() for value in found]))
    assert F.cosine_similarity(*sent, dim=0) > 0.999
