"""Online rendering on small drawn sites: the game, what is published, test-time updates."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from kit.cases import mask, mask_case
from kit.repository import ROOT
from kit.steps import Penalised
from omegaconf import OmegaConf
from torch.nn import functional as F

from fedshift import UserError
from fedshift.client.augmentation import Augmentation
from fedshift.client.contract.method import AVERAGED, Budget, Networks, Scene
from fedshift.client.descent import Descent
from fedshift.client.methods import METHODS
from fedshift.client.methods.online_rendering import BETAS, OnlineRendering
from fedshift.client.methods.online_rendering.networks import Judge, Renderer, Segmentor
from fedshift.client.methods.online_rendering.objectives import hybrid_loss, pool, rendering_loss
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.sites import DataSettings, load_federation, open_site
from fedshift.sites.types import Case, SiteData

CPU = torch.device("cpu")
TASK = Segmentation(parts=("disc",), size=(32, 32))
SMALL = OnlineRendering(
    renderer_width=4,
    segmenter_width=4,
    judge_width=4,
    batch=4,
    lr=5e-3,
    iterations=2,
    online_lr=1e-3,
    reals="frozen",
    stop=None,
    disturbance=0.5,
)
PLAYED = 60
VIEWS = ("appearance", "structure", "pair")


def disc_case(index: int, slices: int = 4, size: int = 32, labelled: bool = True) -> Case:
    """Discs of any place and radius, brighter than a grainy ground."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:size, :size]
    centres, radii = rng.uniform(10, size - 10, (slices, 2)), rng.uniform(4, 8, slices)
    distance = np.hypot(y - centres[:, :1, None], x - centres[:, 1:, None])
    label = (distance < radii[:, None, None]).astype(np.uint8)
    image = 0.2 + 0.5 * label + rng.normal(0, 0.05, label.shape)
    return mask_case(
        image, label if labelled else None, id=f"case{index}", subject=f"subject{index}"
    )


def disc_site(cases: int = 3, labelled: bool = True) -> SiteData:
    train = tuple(disc_case(i, labelled=labelled) for i in range(cases))
    test = tuple(disc_case(100 + i) for i in range(2))
    return SiteData("discs", "train", ("disc",), {"train": train, "val": (), "test": test})


def new_networks(method: OnlineRendering, seed: int = 0) -> Networks:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method.networks(TASK)


def weights(nets: Networks) -> torch.Tensor:
    """All that would travel, running statistics included."""
    return torch.cat([t.double().flatten() for n in nets.values() for t in n.state_dict().values()])


def heads(vendor: str, seed: int) -> SiteData:
    """Fetal heads of 12 subjects, two slices each, as ``vendor`` scans them."""
    config = {
        "name": "heads",
        "kind": "phantom",
        "anatomy": "fetal_head",
        "shift": 1.0,
        "sites": {vendor: [vendor]},
        "unseen": [],
        "sites_per_vendor": 1,
        "subjects": 12,
        "slices": 2,
        "size": 32,
    }
    data = DataSettings(size=32)
    federation = load_federation(config, data, seed)
    return open_site(federation.sites[0], federation.parts, data, seed)


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def all_slices(site: SiteData) -> tuple[torch.Tensor, torch.Tensor]:
    cases = site.splits["train"]
    images = torch.from_numpy(np.concatenate([case.image for case in cases]))
    return images, torch.from_numpy(np.concatenate([mask(case) for case in cases]))


def seen(view: str, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """What a discriminator is to see, written anew: masks (B, 1, H, W) are means over the 3 x 3
    pixels inside the frame."""
    kernel = torch.ones(1, 1, 3, 3, dtype=masks.dtype)
    soft = F.conv2d(masks, kernel, padding=1) / F.conv2d(torch.ones_like(masks), kernel, padding=1)
    return {"appearance": images, "structure": soft, "pair": torch.cat([images, soft], 1)}[view]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def played() -> Networks:
    """Networks after a short self-play."""
    torch.set_num_threads(1)
    nets = new_networks(SMALL)
    SMALL.fit(disc_site(), nets, {}, Budget(TASK, PLAYED, 0, CPU, round=1, rounds=2))
    return nets


@pytest.fixture(scope="module")
def bank(played: Networks) -> dict[str, dict[str, np.ndarray]]:
    """What the site publishes of them, for every form of the reals."""
    published: dict[str, np.ndarray] = {}
    for reals in ("statistics", "stale_gradient"):
        method = replace(SMALL, reals=reals)
        report = method.fit(
            disc_site(), played, {}, Budget(TASK, PLAYED, 0, CPU, round=2, rounds=2)
        )
        published |= report.statistics
    return {"discs": published}


# Networks and losses


def test_networks_have_the_published_size() -> None:
    """At width 32 the authors' code has about 0.61 and 2.49 million parameters."""
    sizes = {
        name: sum(p.numel() for p in net.parameters()) / 1e6
        for name, net in (("renderer", Renderer(1)), ("segmentor", Segmentor(1, 2)))
    }
    assert sizes["renderer"] == pytest.approx(0.61, abs=0.005)
    assert sizes["segmentor"] == pytest.approx(2.49, abs=0.006)


def test_outputs_have_the_images_shape_and_the_first_is_the_prediction() -> None:
    images = torch.rand(2, 1, 24, 40)
    for net, channels, count in ((Renderer(1, width=4), 1, 2), (Segmentor(1, 3, width=4), 3, 3)):
        outputs = net.eval().outputs(images)
        assert [tuple(out.shape) for out in outputs] == [(2, channels, 24, 40)] * count
        assert torch.equal(outputs[0], net(images))
    assert Judge(2, width=4)(torch.rand(3, 2, 24, 40)).shape == (3, 1)


@pytest.mark.parametrize("size", [(20, 32), (8, 8)])
def test_size_that_cannot_be_halved_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"cannot be halved 3 times .* set data\.size to"):
        SMALL.networks(replace(TASK, size=size))


def test_soft_dice_of_perfect_logits_is_one_whatever_the_batch() -> None:
    """A Dice divided by the number of pixels would leave a loss of 1 here."""
    labels = (torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).byte()
    logits = 60 * F.one_hot(labels.long(), 2).permute(0, 3, 1, 2).float() - 30
    assert hybrid_loss([logits] * 3, labels).item() == pytest.approx(0, abs=1e-6)
    # Everything wrong: Dice 1/(n + 1) with n pixels of foreground both ways, cross-entropy 60.
    wrong = 1 - 1 / (2 * 16 * 16 + 1)
    assert hybrid_loss([-logits] * 3, labels).item() == pytest.approx(2.2 * (wrong + 60), rel=1e-5)


def test_rendering_loss_is_the_mean_distance_of_both_outputs() -> None:
    images = torch.zeros(1, 1, 2, 2)
    outputs = (torch.tensor([[[[1.0, -1.0], [0.0, 2.0]]]]), torch.full((1, 1, 2, 2), -0.25))
    assert rendering_loss(outputs, images).item() == pytest.approx(1.0 + 0.25)


def test_moments_are_the_means_and_deviations_of_every_layer() -> None:
    judge = Judge(1, width=3).eval()
    inputs = torch.rand(2, 1, 32, 32)
    expected, hidden = [], inputs
    for layer in judge.layers:
        hidden = layer(hidden)
        values = hidden.detach().numpy().astype(np.float64)
        expected += [values.mean((2, 3)), np.sqrt(values.var((2, 3)) + 1e-6)]
    found = judge.moments(inputs).detach().numpy()
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-5)


# Self-play


def test_self_play_learns_to_segment_what_it_renders(played: Networks) -> None:
    images, labels = all_slices(disc_site())
    for stage in ("source", "iteration_0"):
        scene = Scene(TASK, "discs", CPU, stage=stage)
        found = SMALL.predict(played, images.numpy(), scene).argmax(1) == 1
        truth = labels.numpy() == 1
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8


def test_training_is_determined_by_its_seed_and_leaves_the_global_generator() -> None:
    found, state = [], torch.get_rng_state()
    for seed in (1, 1, 2):
        nets = new_networks(SMALL)
        SMALL.fit(disc_site(), nets, {}, Budget(TASK, 2, seed, CPU))
        found.append(weights(nets))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_every_network_is_trained_and_averaged() -> None:
    for without, count in (("none", 3), ("pair", 2), ("structure_and_pair", 1)):
        method = replace(SMALL, without=without)
        nets = new_networks(method)
        judges = {f"judge_{view}" for view in VIEWS[:count]}
        assert set(nets) == {"renderer", "segmenter", "plain"} | judges
        assert method.sharing(TASK) == dict.fromkeys(nets, AVERAGED)
        before = {name: weights({name: net}) for name, net in nets.items()}
        report = method.fit(disc_site(), nets, {}, Budget(TASK, 1, 0, CPU, rounds=2))
        assert report.trained == dict.fromkeys(nets, 12)
        assert report.statistics == {}
        assert all(not torch.equal(before[name], weights({name: nets[name]})) for name in nets)


def test_penalty_holds_the_networks_back() -> None:
    start = new_networks(SMALL)
    free, held = copy.deepcopy(start), copy.deepcopy(start)
    origin = flat(p for net in start.values() for p in net.parameters())

    def pull(nets: Networks) -> torch.Tensor:
        now = torch.cat([p.flatten() for net in nets.values() for p in net.parameters()])
        return 1e4 * (now - origin).square().sum()

    SMALL.fit(disc_site(), free, {}, Budget(TASK, 4, 0, CPU))
    report = SMALL.fit(disc_site(), held, {}, Budget(TASK, 4, 0, CPU, step=Penalised(pull)))
    assert report.metrics["penalty"] > 0
    for name, net in start.items():
        begun = flat(net.parameters())
        ends = [flat(n[name].parameters()) for n in (free, held)]
        assert (ends[1] - begun).norm() < 0.7 * (ends[0] - begun).norm(), name


def test_site_without_labels_trains_nothing() -> None:
    nets = new_networks(SMALL)
    before = weights(nets)
    report = SMALL.fit(disc_site(labelled=False), nets, {}, Budget(TASK, 1, 0, CPU))
    assert (report.trained, report.statistics) == ({}, {})
    assert torch.equal(weights(nets), before)


def test_batch_of_one_is_refused_with_batch_normalisation_only() -> None:
    method = replace(SMALL, batch=1)
    with pytest.raises(UserError, match=r"discs .* batches of one.*method\.batch"):
        method.fit(disc_site(), new_networks(method), {}, Budget(TASK, 1, 0, CPU))
    method = replace(method, norm="group")
    assert method.fit(disc_site(), new_networks(method), {}, Budget(TASK, 1, 0, CPU)).trained


def test_diverged_or_collapsed_self_play_is_refused() -> None:
    site = disc_site()
    site.splits["train"][0].image[:] = np.nan
    with pytest.raises(UserError, match=r"discs diverged in round 3.*lower method\.lr"):
        SMALL.fit(site, new_networks(SMALL), {}, Budget(TASK, 4, 0, CPU, round=3, rounds=9))
    nets = new_networks(SMALL)
    torch.nn.init.zeros_(nets["renderer"].head.weight)
    with pytest.raises(UserError, match=r"renderer of site discs collapsed.*lower method\.lr"):
        replace(SMALL, lr=1e-12).fit(disc_site(), nets, {}, Budget(TASK, 1, 0, CPU))


# What is published


def test_last_round_publishes_means_over_the_rendered_set_and_trains_nothing(
    played: Networks, bank: dict[str, dict[str, np.ndarray]]
) -> None:
    """Every statistic against one pass over all of S' at once; the real term's gradient is
    autograd's at the published weights."""
    nets = copy.deepcopy(played)
    report = SMALL.fit(disc_site(), nets, {}, Budget(TASK, PLAYED, 0, CPU, round=2, rounds=2))
    assert torch.equal(weights(nets), weights(played))
    assert report.trained == dict.fromkeys(nets, 12)
    assert report.summarised == 12
    images, labels = all_slices(disc_site())
    rendered = nets["renderer"](images).detach()
    for view in VIEWS:
        judge, stored = (
            nets[f"judge_{view}"],
            {
                name.partition(".")[2]: array
                for name, array in bank["discs"].items()
                if name.startswith(f"judge_{view}.")
            },
        )
        real = seen(view, rendered, labels[:, None].float())
        logits, moments = judge(real), judge.moments(real).detach().numpy()
        loss = -torch.log(torch.sigmoid(logits)).mean()
        gradients = torch.autograd.grad(loss, list(judge.parameters()))
        expected = {
            "logit": logits.detach().numpy().mean(0),
            "logit_square": np.square(logits.detach().numpy()).mean(0),
            "moments": moments.mean(0),
            "moments_square": np.square(moments).mean(0),
            "gradient": flat(gradients).numpy(),
        }
        assert stored.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(stored[name], array, rtol=2e-3, atol=2e-5, err_msg=name)
        # Nothing that is published is as large as an image of the site's set.
        assert all(
            len(array) in (1, 48, sum(p.numel() for p in judge.parameters()))
            for array in stored.values()
        )


def test_default_form_publishes_two_numbers_a_discriminator(played: Networks) -> None:
    census = Budget(TASK, 1, 0, CPU, round=2, rounds=2)
    report = SMALL.fit(disc_site(), copy.deepcopy(played), {}, census)
    assert sum(array.size for array in report.statistics.values()) == 3 * 2 + 1


def test_pooled_means_are_those_over_all_sites_images() -> None:
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=(5, 3)), "b": rng.normal(size=(12, 3))}
    bank = {
        site: {"x": found.mean(0).astype(np.float32), "images": np.array([len(found)])}
        for site, found in values.items()
    }
    pooled = pool({**bank, "silent": {}})
    expected = np.concatenate(list(values.values())).mean(0)
    np.testing.assert_allclose(pooled["x"].numpy(), expected, rtol=1e-5)
    assert pool({}) == {}


# Online


def target_images() -> np.ndarray:
    """Discs seen by another scanner: darker, of low contrast."""
    return 0.6 * np.concatenate([case.image for case in disc_site().splits["test"]]) ** 1.5


@pytest.mark.parametrize("reals", ["frozen", "statistics", "stale_gradient"])
def test_each_image_adapts_by_itself_from_the_same_weights(
    reals: str, played: Networks, bank: dict[str, dict[str, np.ndarray]]
) -> None:
    """Bitwise the same alone, in any order and at any site; the networks stay as they were."""
    method = replace(SMALL, reals=reals)
    nets, images = copy.deepcopy(played), target_images()[:3]
    scene, state = Scene(TASK, "discs", CPU, seed=5, bank=bank), torch.get_rng_state()
    found = method.predict(nets, images, scene)
    assert (found.shape, found.dtype) == ((3, 2, 32, 32), np.float32)
    assert np.array_equal(method.predict(nets, images[::-1], scene)[::-1], found)
    elsewhere = replace(scene, site="another")
    assert np.array_equal(method.predict(nets, images[1:2], elsewhere)[0], found[1])
    assert torch.equal(weights(nets), weights(played))
    assert all(p.grad is None for net in nets.values() for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    before = method.predict(nets, images, replace(scene, stage="iteration_0"))
    assert np.abs(found - before).max() > 1e-3


def test_no_iteration_is_the_stage_before_it(played: Networks) -> None:
    scene = Scene(TASK, "discs", CPU)
    found = replace(SMALL, iterations=0).predict(played, target_images(), scene)
    before = SMALL.predict(played, target_images(), replace(scene, stage="iteration_0"))
    np.testing.assert_allclose(found, before, atol=1e-5)


def test_forms_differ_and_without_a_bank_all_are_frozen_judges(
    played: Networks, bank: dict[str, dict[str, np.ndarray]]
) -> None:
    image = target_images()[:1]
    found = {
        (reals, known): replace(SMALL, reals=reals).predict(
            played, image, Scene(TASK, "discs", CPU, bank=bank if known else {})
        )
        for reals in ("frozen", "statistics", "stale_gradient")
        for known in (True, False)
    }
    frozen = found["frozen", True]
    for (reals, known), prediction in found.items():
        assert np.array_equal(prediction, frozen) == (reals == "frozen" or not known)


def test_stop_ends_the_iterations_once_the_judges_take_the_image_for_the_sources(
    played: Networks, bank: dict[str, dict[str, np.ndarray]]
) -> None:
    image, scene = target_images()[0], Scene(TASK, "discs", CPU, bank=bank)
    lengths = {
        stop: len(list(replace(SMALL, stop=stop).adapt(played, image, scene)))
        for stop in (None, -1e6, 1e6)
    }
    assert lengths == {None: 3, -1e6: 3, 1e6: 1}


def test_frozen_judges_are_fooled_more_by_every_iteration(played: Networks) -> None:
    """The sign of the online game: the mean logit of the three rises."""
    logits = []
    for adapted in replace(SMALL, iterations=6).adapt(
        played, target_images()[0], Scene(TASK, "x", CPU)
    ):
        with torch.no_grad():
            rendered = adapted[0](torch.from_numpy(target_images()[:1]))
            masks = adapted[1](rendered).softmax(1)[:, 1:]
            judged = [played[f"judge_{v}"].eval()(seen(v, rendered, masks)) for v in VIEWS]
        logits.append(torch.stack(judged).mean().item())
    assert logits[-1] > logits[0] + 0.01


def test_statistics_bring_the_image_nearer_to_the_rendered_set(
    played: Networks, bank: dict[str, dict[str, np.ndarray]]
) -> None:
    known = {name: torch.from_numpy(array) for name, array in bank["discs"].items()}
    judge = played["judge_appearance"].eval()
    mean = known["judge_appearance.moments"]
    spread = (known["judge_appearance.moments_square"] - mean**2).clamp(min=1e-6).sqrt()
    method = replace(SMALL, reals="statistics", iterations=6, without="structure_and_pair")
    left_out = ("judge_structure", "judge_pair")
    nets = {name: net for name, net in played.items() if name not in left_out}
    deviations = []
    for adapted in method.adapt(nets, target_images()[0], Scene(TASK, "x", CPU, bank=bank)):
        with torch.no_grad():
            moments = judge.moments(adapted[0](torch.from_numpy(target_images()[:1])))
        deviations.append((((moments - mean) / spread) ** 2).mean().item())
    assert deviations[-1] < 0.95 * deviations[0]


def test_stale_gradient_moves_the_judge_as_real_images_would(
    played: Networks, bank: dict[str, dict[str, np.ndarray]]
) -> None:
    """At the published weights the constant plus the generated term's gradient is the gradient of
    the whole objective on S', so Adam's first step is the same."""
    images, _ = all_slices(disc_site())
    rendered = played["renderer"].eval()(images).detach()
    generated = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    constant = torch.from_numpy(bank["discs"]["judge_appearance.gradient"])
    stale, real = (copy.deepcopy(played["judge_appearance"]).eval() for _ in range(2))
    descent = Descent(stale, lr=1e-3, betas=BETAS)
    losses = descent.gradients({"fake": -torch.log(1 - torch.sigmoid(stale(generated))).mean()})
    descent.add_constant(constant)
    descent.take(losses)
    loss = -torch.log(torch.sigmoid(real(rendered))).mean()
    loss = loss - torch.log(1 - torch.sigmoid(real(generated))).mean()
    found = torch.autograd.grad(loss, list(real.parameters()), retain_graph=True)
    gradient = flat(found)
    Descent(real, lr=1e-3, betas=BETAS).step({"loss": loss})
    one, two = (flat(j.parameters()) for j in (stale, real))
    # Where the gradient is near zero its sign, and so Adam's first step, is left to rounding. Some
    # of the judge's units may be dead, more or fewer of them on another processor.
    sure = gradient.abs() > 1e-4
    assert sure.sum() > 0.5 * (gradient != 0).sum() > 0.1 * len(gradient)
    torch.testing.assert_close(one[sure], two[sure], rtol=0, atol=1e-5)


def test_prediction_of_no_image_is_refused(played: Networks) -> None:
    with pytest.raises(ValueError, match="no image"):
        SMALL.predict(played, [], Scene(TASK, "discs", CPU))


def test_features_are_the_pooled_deepest_ones_of_the_rendered_image(played: Networks) -> None:
    images = torch.from_numpy(disc_case(0).image)
    rendered = played["renderer"].eval()(images)
    expected = played["segmenter"].eval().encode(rendered)[-1].detach().numpy().mean((2, 3))
    found = SMALL.features(played, images)
    assert found.shape == (4, 32)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_pictures_show_the_iterations_and_the_dice(played: Networks) -> None:
    grid, curves = SMALL.illustrate(disc_site(), played, Scene(TASK, "discs", CPU))
    iterations = [f"iteration {k}" for k in range(3)]
    assert list(grid.columns) == ["image", *iterations, "segmentation"]
    assert len(grid.images) == len(grid.rows) == 2
    assert np.array_equal(grid.images[0][0], disc_case(100).image[2, 0])
    (line,) = curves.lines.values()
    assert (len(line), list(curves.x)) == (3, [0, 1, 2])
    images = np.stack([disc_case(100 + i).image[2] for i in range(2)])
    truth = np.stack([mask(disc_case(100 + i))[2] for i in range(2)]) == 1
    for index, stage in ((0, "iteration_0"), (2, "")):
        found = SMALL.predict(played, images, Scene(TASK, "discs", CPU, stage=stage)).argmax(1) == 1
        scores = 2 * (found & truth).sum((1, 2)) / (found.sum((1, 2)) + truth.sum((1, 2)))
        assert line[index] == pytest.approx(scores.mean(), abs=1e-6)


def test_online_updates_help_on_another_vendors_images() -> None:
    """The paper's direction (Fig. 5): trained on one vendor's fetal heads, five online updates
    towards the published statistics raise the Dice at vendor_c over iteration 0, with seeds 0 and 1
    in either and by at least 0.02 in their mean (0.037 when written)."""
    gains = []
    for seed in (0, 1):
        source, target = (heads(vendor, seed) for vendor in ("vendor_a", "vendor_c"))
        method = OnlineRendering(lr=4e-3, disturbance=0.0)
        nets = new_networks(method, seed)
        method.fit(source, nets, {}, Budget(TASK, 80, seed, CPU, round=1, rounds=2))
        report = method.fit(source, nets, {}, Budget(TASK, 80, seed, CPU, round=2, rounds=2))
        scene = Scene(TASK, "target", CPU, bank={"source": report.statistics})
        # The target trains nothing: any of its images will do.
        cases = target.splits["train"][:4]
        images = np.concatenate([case.image for case in cases])
        truth = np.concatenate([mask(case) for case in cases]) == 1
        scores = []
        for stage in ("iteration_0", ""):
            found = method.predict(nets, images, replace(scene, stage=stage)).argmax(1) == 1
            scores.append(2 * (found & truth).sum((1, 2)) / (found.sum((1, 2)) + truth.sum((1, 2))))
        gains.append(float((scores[1] - scores[0]).mean()))
    assert min(gains) > 0
    assert np.mean(gains) > 0.02


# Settings


def test_config_holds_every_setting_with_the_codes_default() -> None:
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/method/online_rendering.yaml"))
    assert isinstance(config, dict)
    settings = config["method"]
    assert METHODS.build(settings) == OnlineRendering()
    fields = set(OnlineRendering.__dataclass_fields__)
    assert settings.keys() - {"name"} == fields - {"augmentation"}


def test_paper_preset_is_the_papers() -> None:
    config = OmegaConf.to_container(
        OmegaConf.load(ROOT / "configs/_presets/paper/online_rendering.yaml")
    )
    assert isinstance(config, dict)
    method = METHODS.build(
        {"name": "online_rendering", **config["method"], "augmentation": config["augmentation"]}
    )
    assert isinstance(method, OnlineRendering)
    assert (method.batch, method.lr, method.online_lr, method.iterations) == (2, 1e-3, 1e-4, 25)
    # The last round publishes and trains nothing.
    assert (config["rounds"] - 1) * config["local_steps"] == 6000
    assert config["data"]["size"] == 320
    assert method.augmentation == Augmentation(affine=False)
