"""Style transfer on small drawn sites of two vendors: schedule, losses, what is published, how
styles are drawn, direction, determinism, bad input."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from kit.cases import mask, mask_case
from kit.repository import ROOT
from kit.steps import Penalised
from omegaconf import OmegaConf

from fedshift import UserError
from fedshift.client.augmentation import Augmentation, warp_mask
from fedshift.client.contract.illustrations import ImageGrid, Scatter
from fedshift.client.contract.method import (
    AVERAGED,
    BROADCAST,
    KEPT,
    Budget,
    FitReport,
    Networks,
    Scene,
    StatisticsBank,
)
from fedshift.client.contract.step import Step
from fedshift.client.methods import METHODS, style_transfer
from fedshift.client.methods.style_transfer import StyleTransfer
from fedshift.client.methods.style_transfer.extractor import fixed_extractor
from fedshift.client.methods.style_transfer.pictures import plane
from fedshift.client.methods.style_transfer.style import gram_matrix
from fedshift.client.methods.style_transfer.style_bank import SiteStyle
from fedshift.client.methods.supervised import Supervised
from fedshift.client.networks.gaussian import DiagonalGaussian
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.client.training import predict_slices
from fedshift.sites.types import Case, Domain, SiteData

CPU = torch.device("cpu")
TASK = Segmentation(parts=("vessel",), size=(32, 32))
SMALL = StyleTransfer(
    width=4,
    depth=3,
    batch=6,
    translator_width=4,
    scales=2,
    latent=2,
    translator_batch=6,
    translator_rounds=2,
)
ROUNDS = 4


def vessel_case(index: int, vendor: str, slices: int = 4, labelled: bool = True) -> Case:
    """Bright ellipses on darker ground. Vendor a is dark and smooth, vendor b bright and coarse."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:32, :32]
    image = np.empty((slices, 32, 32), np.float32)
    label = np.empty((slices, 32, 32), np.uint8)
    for s in range(slices):
        cy, cx = rng.uniform(10, 22, 2)
        ry, rx = rng.uniform(4, 8, 2)
        label[s] = np.hypot((y - cy) / ry, (x - cx) / rx) < 1
        noise = rng.normal(0, 1, (32, 32))
        if vendor == "a":
            image[s] = 0.15 + 0.3 * label[s] + 0.02 * noise
        else:
            image[s] = 0.5 + 0.25 * label[s] + 0.1 * noise
    return mask_case(
        image,
        label if labelled else None,
        id=f"case{index}",
        subject=f"subject{index}",
        domain=Domain(vendor),
    )


def site(vendor: str, cases: int = 6, labelled: bool = True) -> SiteData:
    train = tuple(vessel_case(i, vendor, labelled=labelled) for i in range(cases))
    test = tuple(vessel_case(100 + i, vendor) for i in range(3))
    return SiteData(vendor, "train", ("vessel",), {"train": train, "val": (), "test": test})


def new_networks(method: StyleTransfer | Supervised, seed: int = 0) -> Networks:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method.networks(TASK)


def budget(round: int, steps: int = 3, rounds: int = ROUNDS, seed: int = 0) -> Budget:
    return Budget(TASK, steps, seed + 1000 * round, CPU, round=round, rounds=rounds)


def weights(*nets: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for net in nets for p in net.parameters()])


def federated(
    method: StyleTransfer, sites: list[SiteData], last: int, steps: int, seed: int = 0
) -> tuple[Networks, dict[str, dict[str, np.ndarray]]]:
    """Federated averaging with equal weights up to the round ``last``; networks and bank."""
    nets, bank = new_networks(method, seed), {}
    for number in range(1, last + 1):
        sent: dict[str, list[dict[str, torch.Tensor]]] = {}
        published = {}
        for one in sites:
            mine = copy.deepcopy(nets)
            report = method.fit(one, mine, bank, budget(number, steps, last + 1, seed))
            for name in report.trained:
                sent.setdefault(name, []).append(mine[name].state_dict())
            if report.statistics:
                published[one.name] = report.statistics
        for name, states in sent.items():
            mean = {key: sum(s[key] for s in states) / len(states) for key in states[0]}
            nets[name].load_state_dict(mean)
        bank = {**bank, **published}
    return nets, bank


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained() -> tuple[Networks, dict[str, dict[str, np.ndarray]]]:
    """A translator of both vendors and the styles they published. Not to be written to."""
    torch.set_num_threads(1)
    return federated(TRANSLATING, [site("a"), site("b")], 10, 15)


TRANSLATING = StyleTransfer(
    width=4,
    depth=3,
    batch=6,
    translator_width=6,
    scales=2,
    translator_batch=6,
    translator_lr=5e-3,
    translator_rounds=10,
)


def changed(before: Networks, after: Networks) -> set[str]:
    return {name for name in before if not torch.equal(weights(before[name]), weights(after[name]))}


def test_rounds_train_what_they_are_for() -> None:
    method = StyleTransfer(
        width=4,
        depth=3,
        translator_width=4,
        scales=2,
        warmup_rounds=1,
        pretraining_rounds=1,
        translator_rounds=1,
    )
    nets = new_networks(method)
    encoders = {"style_encoder", "content_encoder"}
    expected = [
        {"segmenter"},
        encoders | {"style_decoder", "content_decoder"},
        encoders | {"decoder"},
        {"segmenter"},
    ]
    for number, names in enumerate(expected, start=1):
        before = copy.deepcopy(nets)
        report = method.fit(site("a", 2), nets, {}, budget(number, 1))
        assert set(report.trained) == changed(before, nets) == names
        assert set(report.trained.values()) == {8}


def test_site_without_labels_trains_the_translator_alone_and_publishes_its_style() -> None:
    target = site("b", 2, labelled=False)
    for number, names in ((1, set(style_transfer.TRANSLATOR)), (3, set())):
        nets = new_networks(SMALL)
        before = copy.deepcopy(nets)
        report = SMALL.fit(target, nets, {}, budget(number, 1))
        assert set(report.trained) == changed(before, nets) == names
        assert report.summarised == (8 if report.statistics else 0)
    assert set(report.statistics) == {"style_mean", "style_deviation", *GRAMS}


GRAMS = [f"gram_{layer}" for layer in range(4)]


def test_sharing_follows_labels_and_where_the_style_encoder_lives() -> None:
    labelled = SMALL.sharing(TASK)
    assert labelled == dict.fromkeys(("segmenter", *style_transfer.TRANSLATOR), AVERAGED)
    some = Segmentation(parts=("vessel",), unlabelled=("b",))
    assert SMALL.sharing(some)["segmenter"] == BROADCAST
    kept = StyleTransfer(style_encoder="kept", pretraining_rounds=1)
    assert kept.sharing(TASK)["style_encoder"] == KEPT
    assert set(kept.sharing(TASK)) == set(new_networks(kept))


def test_published_are_numbers_a_channel_and_the_mean_gram_matrices() -> None:
    one, nets = site("b", 2), new_networks(SMALL)
    report = SMALL.fit(one, nets, {}, budget(3, 1))
    assert report.summarised == 8
    # Two scales of 4 and 8 channels, a mean and a deviation each: no place for a pixel.
    assert report.statistics["style_mean"].shape == (24,)
    images = torch.from_numpy(np.concatenate([c.image for c in one.splits["train"]]))
    for name, features in zip(GRAMS, fixed_extractor()(images), strict=True):
        expected = np.mean([gram_matrix(f[None])[0].numpy() for f in features], axis=0)
        np.testing.assert_allclose(report.statistics[name], expected, rtol=1e-4, atol=1e-6)


def test_nothing_is_published_of_an_untrained_style_encoder() -> None:
    nets = new_networks(SMALL)
    assert not SMALL.fit(site("a", 2), nets, {}, budget(1, 1)).statistics
    assert SMALL.fit(site("a", 2), nets, {}, budget(2, 1)).statistics


def test_loss_is_equations_3_and_5_with_the_chosen_norm() -> None:
    rng = np.random.default_rng(0)
    wanted, found = ([rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(2, 5, 2, 2))] for _ in "ab")
    tensors = [[torch.from_numpy(a).float() for a in side] for side in (wanted, found)]
    differences = [a - b for a, b in zip(wanted, found, strict=True)]
    squared = SMALL._weighted((0.5, 2.0), *tensors)
    expected = 0.5 * np.mean(differences[0] ** 2) + 2 * np.mean(differences[1] ** 2)
    assert squared.item() == pytest.approx(expected, rel=1e-5)
    absolute = StyleTransfer(distance="absolute")._weighted((0.0, 2.0), *tensors)
    assert absolute.item() == pytest.approx(2 * np.abs(differences[1]).mean(), rel=1e-5)


def test_kl_is_the_mean_over_entries_summed_over_scales() -> None:
    """Entries with mu = 1, sigma = 1 have 0.5 nats each, whatever the scale's size."""
    scales = [DiagonalGaussian(torch.ones(2, 3, n, n), torch.zeros(2, 3, n, n)) for n in (4, 2)]
    assert StyleTransfer(kl=0.2)._kl(scales).item() == pytest.approx(0.2)
    assert StyleTransfer(kl=0.2, styles="deterministic")._kl(scales).item() == 0


def test_latents_vary_unless_styles_are_deterministic() -> None:
    scales = [DiagonalGaussian(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))]
    for method, varies in ((SMALL, True), (StyleTransfer(styles="deterministic"), False)):
        (z,) = method._latents(scales, torch.Generator().manual_seed(0))
        assert torch.equal(z, scales[0].mean) != varies


def gram_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Between the mean Gram matrices of two sets of images, summed over the layers."""
    layers = zip(fixed_extractor()(one), fixed_extractor()(other), strict=True)
    return sum(
        float((gram_matrix(a).mean(0) - gram_matrix(b).mean(0)).square().sum()) for a, b in layers
    )


def test_rendering_takes_the_others_style_and_keeps_its_own_content(
    trained: tuple[Networks, StatisticsBank],
) -> None:
    """Direction of Fig. 2, seed 0: towards the other vendor's images the distance between Gram
    matrices falls below a tenth of the original's, both ways, and the vessel stays where it is: it
    remains brighter than the ground by over half of the image's deviation."""
    nets, bank = trained
    images, masks = {}, {}
    for vendor in ("a", "b"):
        cases = site(vendor).splits["test"]
        images[vendor] = torch.from_numpy(np.concatenate([c.image for c in cases]))
        masks[vendor] = torch.from_numpy(np.concatenate([mask(c) for c in cases]))[:, None] == 1
    for here, there in (("a", "b"), ("b", "a")):
        code = SiteStyle.from_bank(bank[there], CPU).mean.expand(len(images[here]), -1)
        rendered = TRANSLATING.restyle(nets, images[here], code)
        before = gram_distance(images[here], images[there])
        assert gram_distance(rendered, images[there]) < 0.1 * before
        inside, outside = rendered[masks[here]].mean(), rendered[~masks[here]].mean()
        assert inside - outside > 0.5 * rendered.std()


def test_each_way_of_drawing_styles(trained: tuple[Networks, StatisticsBank]) -> None:
    nets, bank = trained
    own, other = (SiteStyle.from_bank(bank[name], CPU) for name in ("a", "b"))

    def draw(styles: str, count: int = 400, **settings: object) -> torch.Tensor:
        method = copy.copy(TRANSLATING)
        method = StyleTransfer(
            **{**vars(method), "styles": styles, **settings}  # type: ignore[arg-type]
        )
        drawn = method._draw(nets, own, {"b": other}, (32, 32))
        assert drawn is not None
        return drawn(count, torch.Generator().manual_seed(0))

    torch.testing.assert_close(draw("own").mean(0), own.mean, atol=0.1, rtol=0.1)
    observed = draw("observed")
    torch.testing.assert_close(observed.mean(0), other.mean, atol=0.1, rtol=0.1)
    torch.testing.assert_close(observed.std(0), other.deviation, atol=0.05, rtol=0.2)
    assert torch.equal(draw("deterministic"), other.mean.expand(400, -1))
    centre = (own.mean + other.mean) / 2
    beyond = draw("beyond", reach=3.0)
    # Factors are uniform between 1 and 3: on average twice as far from the centre.
    assert (beyond.mean(0) - centre).norm() == pytest.approx(
        2 * float((other.mean - centre).norm()), rel=0.15
    )
    prior = draw("prior", 8)
    assert prior.shape == (8, len(own.mean))
    assert prior.std(0).mean() > 0


def test_variational_styles_differ_and_deterministic_ones_do_not(
    trained: tuple[Networks, StatisticsBank],
) -> None:
    nets, bank = trained
    image = torch.from_numpy(vessel_case(0, "a").image[:1]).expand(6, 1, 32, 32)
    spread = {}
    for styles in ("observed", "deterministic"):
        method = StyleTransfer(**{**vars(TRANSLATING), "styles": styles})
        known = {"b": SiteStyle.from_bank(bank["b"], CPU)}
        drawn = method._draw(nets, SiteStyle.from_bank(bank["a"], CPU), known, (32, 32))
        assert drawn is not None
        codes = drawn(6, torch.Generator().manual_seed(0))
        spread[styles] = float(method.restyle(nets, image, codes).std(0).mean())
    assert spread["deterministic"] < 1e-6
    assert spread["observed"] > 1e-3


def test_restyling_changes_its_share_of_the_batch_and_no_mask(
    trained: tuple[Networks, StatisticsBank],
) -> None:
    nets, bank = trained
    method = StyleTransfer(
        **{**vars(TRANSLATING), "restyled": 0.5, "augmentation": Augmentation(affine=False)}
    )
    known = {"b": SiteStyle.from_bank(bank["b"], CPU)}
    drawn = method._draw(nets, known["b"], known, (32, 32))
    change = style_transfer._Restyling(method, nets, drawn, amp=False)
    case = vessel_case(0, "a")
    images, labels = torch.from_numpy(case.image), torch.from_numpy(mask(case))
    before = images.clone()
    new_images, new_labels = change(images, labels, torch.Generator().manual_seed(0), warp_mask)
    assert torch.equal(images, before)
    assert torch.equal(new_labels, labels)
    same = [torch.equal(a, b) for a, b in zip(new_images, images, strict=True)]
    assert same == [False, False, True, True]


@pytest.mark.parametrize(
    ("settings", "published"),
    [({"restyled": 0.0}, ("a", "b")), ({"style_sites": ("a",)}, ("b",)), ({}, ("a",))],
)
def test_without_other_styles_the_segmentation_is_trained_as_usual(
    settings: dict[str, object],
    published: tuple[str, ...],
    trained: tuple[Networks, StatisticsBank],
) -> None:
    """No share restyled, the site's own style wanted, or no other site's style in the bank: the
    bits of supervised training."""
    method = StyleTransfer(**{**vars(TRANSLATING), "translator_rounds": 2, **settings})  # type: ignore[arg-type]
    bank = {name: trained[1][name] for name in published}
    usual = Supervised(width=4, depth=3, batch=6)
    nets = new_networks(method)
    plain = {"segmenter": copy.deepcopy(nets["segmenter"])}
    styled = method.fit(site("a", 2), nets, bank, budget(3))
    expected = usual.fit(site("a", 2), plain, {}, budget(3))
    assert styled.metrics == expected.metrics
    assert torch.equal(weights(nets["segmenter"]), weights(plain["segmenter"]))


def test_pretraining_makes_both_autoencoders_reconstruct() -> None:
    method = StyleTransfer(translator_width=4, scales=2, pretraining_rounds=2)
    nets, one = new_networks(method), site("a", 3)
    first = method.fit(one, nets, {}, budget(1, 1, 10)).metrics
    method.fit(one, nets, {}, budget(1, 30, 10))
    last = method.fit(one, nets, {}, budget(2, 1, 10)).metrics
    for name in ("style_reconstruction", "content_reconstruction"):
        assert last[name] < 0.3 * first[name]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_equal_seeds_give_equal_bits_and_no_global_generator_is_touched(
    number: int, trained: tuple[Networks, StatisticsBank]
) -> None:
    method = StyleTransfer(**{**vars(TRANSLATING), "translator_rounds": 2})
    one, start = site("a", 2), new_networks(method)
    results = []
    for global_seed, seed in ((1, 0), (2, 0), (3, 7)):
        nets = copy.deepcopy(start)
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        report = method.fit(one, nets, trained[1], budget(number, 2, seed=seed))
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
        published = [torch.from_numpy(v).flatten() for v in report.statistics.values()]
        results.append(torch.cat([weights(*nets.values()), *published]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_penalty_holds_what_is_trained_in_place(number: int) -> None:
    method = StyleTransfer(**{**vars(SMALL), "pretraining_rounds": 1, "translator_rounds": 1})
    one, start = site("a", 2), new_networks(method)
    origin = weights(*start.values())

    def pull(nets: dict[str, torch.nn.Module]) -> torch.Tensor:
        moved = torch.cat([p.flatten() for n in nets.values() for p in n.parameters()]) - origin
        return 1e3 * moved.square().sum()

    moves = {}
    for name, step in (("free", Step()), ("held", Penalised(pull))):
        nets = copy.deepcopy(start)
        given = Budget(TASK, 8, 0, CPU, step=step, round=number, rounds=4)
        report = method.fit(one, nets, {}, given)
        moves[name] = float((weights(*nets.values()) - origin).norm())
    assert report.metrics["penalty"] > 0
    assert moves["held"] < 0.8 * moves["free"]


def test_task_encoder_serves_as_extractor_and_is_not_trained_by_it() -> None:
    method = StyleTransfer(
        width=4,
        depth=3,
        blocks=2,
        translator_width=4,
        scales=2,
        extractor="task",
        warmup_rounds=1,
        translator_rounds=2,
        perceptual=(0.0, 0.0, 1.0),
        style=(1e3, 1e3, 1e3),
    )
    nets, one = new_networks(method), site("a", 2)
    method.fit(one, nets, {}, budget(1))
    segmenter = copy.deepcopy(nets["segmenter"])
    report = method.fit(one, nets, {}, budget(3))
    assert torch.equal(weights(segmenter), weights(nets["segmenter"]))
    # The last block of each level, of 4, 8 and 16 channels.
    assert [report.statistics[f"gram_{n}"].shape for n in range(3)] == [(4, 4), (8, 8), (16, 16)]
    images = torch.from_numpy(np.concatenate([c.image for c in one.splits["train"]]))
    with torch.no_grad():
        outputs = segmenter.eval().encode(images)
    expected = gram_matrix(outputs[1]).mean(0)
    np.testing.assert_allclose(report.statistics["gram_0"], expected, rtol=1e-3, atol=1e-5)
    assert all(p.requires_grad for p in nets["segmenter"].parameters())


def test_spoiled_image_is_reported_as_divergence() -> None:
    one = site("a", 1)
    one.splits["train"][0].image[0, 0, 3, 3] = np.nan
    with pytest.raises(UserError, match=r"diverged in round 1: lower method\.translator_lr"):
        SMALL.fit(one, new_networks(SMALL), {}, budget(1))


def collapsed(part: Callable[[Networks], torch.nn.Parameter]) -> FitReport:
    """Fit the last translator round with a learning rate of zero and one parameter set to zero."""
    method = StyleTransfer(**{**vars(SMALL), "translator_lr": 0.0})
    nets = new_networks(method)
    with torch.no_grad():
        part(nets).zero_()
    return method.fit(site("a", 3), nets, {}, budget(2))


def test_collapsed_translator_is_refused() -> None:
    with pytest.raises(UserError, match="the translator ignores the style"):
        collapsed(lambda nets: nets["decoder"].head.weight)
    with pytest.raises(UserError, match="the translator ignores the content"):
        collapsed(lambda nets: nets["content_encoder"].blocks[0][0].weight)
    healthy = StyleTransfer(**{**vars(SMALL), "translator_lr": 0.0})
    assert healthy.fit(site("a", 3), new_networks(healthy), {}, budget(2)).trained


def test_named_site_that_has_published_nothing_is_refused() -> None:
    method = StyleTransfer(**{**vars(SMALL), "style_sites": ("b",)})
    with pytest.raises(UserError, match=r"style_sites: b has published no style; .* are none"):
        method.fit(site("a", 2), new_networks(method), {}, budget(3))
    assert method.fit(site("b", 2), new_networks(method), {}, budget(3)).trained


def test_run_without_a_segmentation_round_is_refused() -> None:
    with pytest.raises(UserError, match=r"rounds=2 leaves none for the segmentation, .* come 2"):
        SMALL.fit(site("a", 1), new_networks(SMALL), {}, budget(1, rounds=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"perceptual": [1.0]}, r"perceptual needs 4 weights, .*extractor=fixed, not 1"),
        ({"style": [1, 1, 1, -1]}, r"method\.style must not have a weight below 0"),
        ({"extractor": "vgg16", "perceptual": [0] * 5, "style": [0] * 5}, "do not go together"),
        ({"extractor_file": "vgg.pth"}, "do not go together"),
        ({"extractor": "task"}, r"set method\.warmup_rounds to at least 1"),
        ({"styles": "prior", "style_sites": ["b"]}, r"style_sites has no meaning with .*prior"),
        ({"styles": "seen"}, r"method\.styles must be one of own, observed, beyond"),
        ({"restyled": 1.5}, r"method\.restyled must be at most 1"),
    ],
)
def test_wrong_settings_are_refused_by_their_key(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        METHODS.build({"name": "style_transfer", **settings})


@pytest.mark.parametrize("size", [(30, 32), (32, 4)])
def test_grid_that_cannot_be_halved_is_refused(size: tuple[int, int]) -> None:
    method = StyleTransfer(scales=3)
    with pytest.raises(UserError, match=r"cannot be halved 2 times for method\.scales=3"):
        method.networks(Segmentation(parts=("vessel",), size=size))


def test_prediction_is_the_segmenters_and_features_its_last_block() -> None:
    nets, case = new_networks(SMALL), vessel_case(0, "a")
    scene = Scene(TASK, "a", CPU)
    found = SMALL.predict(nets, case.image, scene)
    np.testing.assert_array_equal(found, predict_slices(nets["segmenter"], case.image, scene))
    images = torch.from_numpy(case.image)
    expected = nets["segmenter"].encode(images)[-1].detach().numpy().mean((2, 3))
    np.testing.assert_allclose(SMALL.features(nets, images), expected, rtol=1e-4, atol=1e-6)


def test_illustrations_show_every_published_style_and_the_bank_in_a_plane(
    trained: tuple[Networks, StatisticsBank],
) -> None:
    nets, bank = trained
    one = site("a")
    grid, plane = TRANSLATING.illustrate(one, nets, Scene(TASK, "a", CPU, bank=bank))
    assert isinstance(grid, ImageGrid)
    assert isinstance(plane, Scatter)
    assert list(grid.columns)[:5] == ["original", "as a", "difference", "as b", "difference"]
    assert grid.signed == {2, 4}
    for row, case in zip(grid.images, one.splits["test"], strict=True):
        assert len(row) == len(grid.columns)
        np.testing.assert_array_equal(row[0], case.image[2, 0])
        np.testing.assert_allclose(row[4], row[3] - row[0], atol=1e-6)
    assert set(plane.groups) == {"a", "b", "beyond"}
    # The two vendors' styles lie apart in the plane.
    centres = {name: points.mean(0) for name, points in plane.groups.items()}
    spread = max(plane.groups[name].std(0).max() for name in ("a", "b"))
    assert np.linalg.norm(centres["a"] - centres["b"]) > spread
    assert TRANSLATING.illustrate(one, nets, Scene(TASK, "a", CPU)) == []


def test_plane_keeps_the_two_directions_of_largest_variance() -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(200, 5)) * [0.1, 3.0, 0.1, 1.0, 0.1]
    groups = {"x": torch.from_numpy(codes[:150]), "y": torch.from_numpy(codes[150:])}
    found = np.concatenate(list(plane(groups).values()))
    values = np.linalg.eigvalsh(np.cov(codes.T))
    np.testing.assert_allclose(found.var(0, ddof=1), values[:-3:-1], rtol=1e-6)


def test_every_setting_is_in_the_config_with_the_codes_default() -> None:
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/method/style_transfer.yaml"))
    assert isinstance(config, dict)
    settings = config["method"]
    name = settings.pop("name")
    assert METHODS.build({"name": name, **settings}) == StyleTransfer()
    assert set(settings) == set(StyleTransfer.__dataclass_fields__) - {"augmentation"}
    assert config["rounds"] > settings["translator_rounds"]


def test_paper_preset_is_the_papers_network_weights_and_optimiser() -> None:
    file = ROOT / "configs/_presets/paper/style_transfer.yaml"
    config = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(config, dict)
    method = METHODS.build(
        {"name": "style_transfer", **config["method"], "extractor_file": "vgg.pth"}
    )
    assert isinstance(method, StyleTransfer)
    assert (method.translator_width * 2 ** (method.scales - 1), method.scales) == (1024, 5)
    assert method.translator_norm == "batch"
    assert method.perceptual == (0, 0, 0, 0, 0.01)
    assert method.style == (0.1, 0.002, 0.001, 0.01, 10)
    assert (method.translator_lr, method.reconstruction) == (5e-5, 0)
    assert method.pretraining_rounds > 0
