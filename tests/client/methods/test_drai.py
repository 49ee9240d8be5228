"""DRAI on small drawn sites: what is trained and sent, restyling, determinism, bad input, and the
paper's direction on phantoms."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.cases import mask, mask_case
from kit.repository import ROOT
from kit.steps import Penalised
from omegaconf import OmegaConf
from torch import nn

from fedshift import UserError
from fedshift.client.contract.illustrations import ImageGrid
from fedshift.client.contract.method import AVERAGED, BROADCAST, KEPT, Budget, Networks, Scene
from fedshift.client.contract.step import Step
from fedshift.client.methods import METHODS
from fedshift.client.methods.drai import DRAI, JUDGES, PLAYERS
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.client.training import predict_slices
from fedshift.papers import p09_drai
from fedshift.sites.phantoms import draw
from fedshift.sites.types import Case, Domain, SiteData

CPU = torch.device("cpu")
STRUCTURES = ("LV cavity", "myocardium", "RV cavity")
TASK = Segmentation(parts=STRUCTURES, size=(32, 32))
SMALL = DRAI(
    width=4, depth=3, batch=4, generator_width=4, generator_batch=4, style=3, content=5,
    generation_rounds=2,
)  # fmt: skip


def phantom_case(index: int, vendor: str, labelled: bool = True, seed: int = 0) -> Case:
    image, label, spacing = draw(
        "cardiac", vendor=vendor, subject=f"subject{index}", seed=seed, shift=1.0, size=32, slices=4
    )
    image = image / np.quantile(image, 0.99)
    return mask_case(
        image,
        label if labelled else None,
        id=f"{vendor}-{index}",
        subject=f"subject{index}",
        domain=Domain(vendor),
        spacing_mm=spacing,
    )


def phantom_site(
    name: str = "vendor_a", labelled: bool = True, cases: int = 2, vendors: tuple[str, ...] = ()
) -> SiteData:
    vendors = vendors or (name,)

    def some(first: int, count: int, labelled: bool) -> tuple[Case, ...]:
        indices = range(first, first + count)
        return tuple(phantom_case(i, v, labelled) for v in vendors for i in indices)

    splits = {
        "train": some(0, cases, labelled),
        "val": some(100, 1, labelled),
        "test": some(200, 2, True),
    }
    return SiteData(name, "train", STRUCTURES, splits)


def new_networks(method: DRAI, seed: int = 0) -> Networks:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method.networks(TASK)


def budget(round: int = 1, steps: int = 2, seed: int = 0, **more: object) -> Budget:
    return Budget(TASK, steps, seed, CPU, round=round, rounds=6, **more)  # type: ignore[arg-type]


def weights(nets: Networks) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for net in nets.values() for p in net.parameters()])


def changed(before: Networks, after: Networks) -> set[str]:
    return {
        name
        for name, net in after.items()
        if not torch.equal(weights({name: net}), weights({name: before[name]}))
    }


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# --- what is trained, where, and what is sent ----------------------------------------------------


def test_first_rounds_train_players_and_judges_and_the_rest_the_segmentation() -> None:
    site, nets = phantom_site(), new_networks(SMALL)
    before = copy.deepcopy(nets)
    report = SMALL.fit(site, nets, {}, budget(1))
    assert set(report.trained) == changed(before, nets) == {*PLAYERS, *JUDGES}
    assert set(report.trained.values()) == {8}
    before = copy.deepcopy(nets)
    report = SMALL.fit(site, nets, {}, budget(3))
    assert set(report.trained) == changed(before, nets) == {"segmenter"}


def test_site_without_labels_trains_all_that_needs_none() -> None:
    site, nets = phantom_site(labelled=False), new_networks(SMALL)
    before = copy.deepcopy(nets)
    report = SMALL.fit(site, nets, {}, budget(1))
    without = {*PLAYERS, *JUDGES} - {"condition_encoder", "judge_condition"}
    assert set(report.trained) == changed(before, nets) == without
    assert "condition" not in report.metrics
    before = copy.deepcopy(nets)
    report = SMALL.fit(site, nets, {}, budget(3))
    assert report.trained == {} and changed(before, nets) == set()
    assert report.metrics["cifc"] > 0 and report.statistics["style_mean"].shape == (3,)


def test_dai_trains_the_same_networks_but_the_code_predictors() -> None:
    dai = replace(SMALL, constraints=())
    nets = new_networks(dai)
    before = copy.deepcopy(nets)
    report = dai.fit(phantom_site(), nets, {}, budget(1))
    predictors = {"style_from_content", "content_from_style"}
    assert set(report.trained) == changed(before, nets) == {*PLAYERS, *JUDGES} - predictors


def test_discriminators_never_leave_and_what_unlabelled_sites_use_is_broadcast() -> None:
    found = SMALL.sharing(TASK)
    assert found == {
        **dict.fromkeys(("segmenter", *PLAYERS), AVERAGED),
        **dict.fromkeys(JUDGES, KEPT),
    }
    assert set(found) == set(new_networks(SMALL))
    found = SMALL.sharing(replace(TASK, unlabelled=("vendor_b",)))
    assert found["segmenter"] == found["condition_encoder"] == BROADCAST
    assert replace(SMALL, style_encoder="kept").sharing(TASK)["style_encoder"] == KEPT


def test_published_moments_are_those_of_the_codes_and_features() -> None:
    site, nets = phantom_site(), new_networks(SMALL)
    assert SMALL.fit(site, nets, {}, budget(1)).statistics == {}
    images = torch.from_numpy(np.concatenate([c.image for c in site.splits["train"]]))
    with torch.no_grad():
        codes = nets["content_encoder"](images).mean.double().numpy()
    features = SMALL.features(nets, images).double().numpy()
    report = SMALL.fit(site, nets, {}, budget(4))
    found = report.statistics
    assert report.summarised == found["count"] == 8
    for name, values in (("content", codes), ("real", features)):
        np.testing.assert_allclose(found[f"{name}_mean"], values.mean(axis=0), atol=1e-6)
        centred = values - values.mean(axis=0)
        np.testing.assert_allclose(
            found[f"{name}_covariance"], centred.T @ centred / len(values), atol=1e-6
        )
    assert found["generated_mean"].shape == found["real_mean"].shape


def test_frechet_is_of_the_moments_that_all_sites_published() -> None:
    site, nets = phantom_site(), new_networks(SMALL)
    published = SMALL.fit(site, nets, {}, budget(2)).statistics

    def entry(real: float, generated: float) -> dict[str, np.ndarray]:
        moments = {"real_mean": np.array([real]), "generated_mean": np.array([generated])}
        nothing = np.zeros((1, 1))
        return (
            published
            | moments
            | dict.fromkeys(("real_covariance", "generated_covariance"), nothing)
        )

    bank = {"a": entry(real=0.0, generated=1.0), "b": entry(real=2.0, generated=1.0)}
    metrics = SMALL.fit(site, nets, bank, budget(4)).metrics
    # Pooled, the real features have mean 1 and variance 1, the generated mean 1 and variance 0.
    assert metrics["frechet"] == pytest.approx(1.0)


def test_share_of_a_codes_variance_between_the_sites() -> None:
    site, nets = phantom_site(), new_networks(SMALL)
    published = SMALL.fit(site, nets, {}, budget(2)).statistics
    # One site has 8 codes around 0 with variance 3 in all, the other 24 around (4, 0, 0) with 1.
    bank = {
        "a": published | {"style_mean": np.zeros(3), "style_covariance": np.eye(3)},
        "b": published
        | {
            "count": np.array([24.0]),
            "style_mean": np.array([4.0, 0.0, 0.0]),
            "style_covariance": np.eye(3) / 3,
        },
    }
    metrics = SMALL.fit(site, nets, bank, budget(3)).metrics
    within, between = (8 * 3 + 24 * 1) / 32, 0.25 * 0.75 * 4**2
    assert metrics["style_between_sites"] == pytest.approx(between / (within + between))
    assert metrics["content_between_sites"] == pytest.approx(0.0, abs=1e-9)


def test_every_measure_of_a_collapse_is_reported_beside_cifc() -> None:
    site, nets = phantom_site(), new_networks(SMALL)
    bank = {"vendor_b": SMALL.fit(phantom_site("vendor_b"), nets, {}, budget(2)).statistics}
    metrics = SMALL.fit(site, nets, bank, budget(3)).metrics
    images = torch.from_numpy(site.splits["val"][0].image)
    with torch.no_grad():
        z, c = nets["style_encoder"](images).mean, nets["content_encoder"](images).mean
        again = nets["generator"](z, c)
    assert metrics["reconstruction"] == pytest.approx((again - images).abs().mean().item())
    assert metrics["style_variance"] == pytest.approx(z.var(dim=0).mean().item())
    assert metrics["content_variance"] == pytest.approx(c.var(dim=0).mean().item())
    assert {"cifc", "cifc_relative", "cifc_across", "cifc_across_relative"} <= set(metrics)


# --- restyling -----------------------------------------------------------------------------------


def test_own_style_leaves_an_image_as_it_is_and_another_changes_it() -> None:
    nets = new_networks(SMALL)
    images = torch.from_numpy(phantom_case(0, "vendor_a").image)
    with torch.no_grad():
        own = nets["style_encoder"](images).mean
    assert torch.equal(SMALL.restyle(nets, images, own), images)
    assert not torch.allclose(SMALL.restyle(nets, images, own + 5), images, atol=1e-4)


def test_content_is_segmented_in_the_neutral_style() -> None:
    method = replace(SMALL, use="content")
    nets = new_networks(method)
    images = phantom_case(0, "vendor_a").image
    scene = Scene(TASK, "vendor_a", CPU)
    found = method.predict(nets, images, scene)
    neutral = method.restyle(nets, torch.from_numpy(images), torch.zeros(4, 3))
    expected = predict_slices(nets["segmenter"], neutral.numpy(), scene)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    plain = SMALL.predict(nets, images, scene)
    assert not np.allclose(found, plain, atol=1e-5)


@pytest.mark.parametrize("use", ["hybrids", "content"])
def test_segmentation_is_trained_on_restyled_slices(use: str) -> None:
    method = replace(SMALL, use=use, hybrids=1.0)
    start = new_networks(method)
    bank = {"vendor_b": method.fit(phantom_site("vendor_b"), start, {}, budget(2)).statistics}
    start = new_networks(method)
    results = []
    for zeroed in (False, True):
        nets = copy.deepcopy(start)
        if zeroed:
            # A generator that makes the same of every code restyles nothing.
            nn.init.zeros_(nets["generator"].head.weight)
        method.fit(phantom_site(), nets, bank, budget(3))
        results.append(weights({"segmenter": nets["segmenter"]}))
    assert not torch.equal(*results)


def test_hybrids_of_none_are_plain_training() -> None:
    start = new_networks(SMALL)
    results = []
    for method, seed in ((replace(SMALL, hybrids=0.0), 1), (replace(SMALL, hybrids=0.0), 2)):
        nets = copy.deepcopy(start)
        for name in PLAYERS:
            with torch.no_grad():
                for parameter in nets[name].parameters():
                    parameter.mul_(seed)
        method.fit(phantom_site(), nets, {}, budget(3))
        results.append(weights({"segmenter": nets["segmenter"]}))
    assert torch.equal(*results)


# --- rules of every method -----------------------------------------------------------------------


@pytest.mark.parametrize("round", [1, 3])
def test_equal_seeds_give_equal_bits_whatever_the_global_generators(round: int) -> None:
    start, results = new_networks(SMALL), []
    for global_seed, seed in ((1, 5), (2, 5), (3, 6)):
        nets = copy.deepcopy(start)
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        report = SMALL.fit(phantom_site(), nets, {}, budget(round, seed=seed))
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
        results.append((weights(nets), report.metrics))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    assert not torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize("round", [1, 3])
def test_penalty_is_added_at_every_step(round: int) -> None:
    start = new_networks(SMALL)
    trained = "generator" if round == 1 else "segmenter"
    origin = weights({trained: start[trained]})

    def pull(nets: dict[str, nn.Module]) -> torch.Tensor:
        now = torch.cat([p.flatten() for p in nets[trained].parameters()])
        return 1e3 * (now - origin).square().sum()

    moved = []
    for step in (Step(), Penalised(pull)):
        nets = copy.deepcopy(start)
        report = SMALL.fit(phantom_site(), nets, {}, budget(round, steps=6, step=step))
        moved.append((weights({trained: nets[trained]}) - origin).norm())
    assert moved[1] < 0.8 * moved[0]
    assert report.metrics["penalty"] > 0


def test_settings_in_the_config_are_the_codes_defaults() -> None:
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/method/drai.yaml"))
    assert isinstance(config, dict)
    method = dict(config["method"])
    assert METHODS.build(method) == DRAI()
    assert set(method) - {"name"} == set(DRAI.__dataclass_fields__) - {"augmentation"}
    assert config["rounds"] >= DRAI().generation_rounds + 3


def test_paper_preset_is_the_papers_size_rates_and_weights() -> None:
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/_presets/paper/drai.yaml"))
    assert isinstance(config, dict)
    method = METHODS.build({"name": "drai", **config["method"]})
    assert isinstance(method, DRAI)
    assert config["data"]["size"] == 64
    assert (method.generator_lr, method.judge_lr, method.cycle, method.kl) == (1e-5, 1e-5, 1, 1)
    assert method.transform == "paper" and len(method.constraints) == 3
    nets = method.networks(replace(TASK, size=(64, 64)))
    assert nets["generator"](torch.zeros(1, 64), torch.zeros(1, 64)).shape == (1, 1, 64, 64)


def test_pictures_are_of_one_size_and_name_their_columns() -> None:
    site, nets = phantom_site(), new_networks(SMALL)
    bank = {"vendor_b": SMALL.fit(phantom_site("vendor_b"), nets, {}, budget(2)).statistics}
    grids = SMALL.illustrate(site, nets, Scene(TASK, "vendor_a", CPU, bank=bank))
    assert [grid.name for grid in grids] == ["samples", "hybrids", "restyled"]
    for grid in grids:
        assert isinstance(grid, ImageGrid)
        assert len(grid.images) == len(grid.rows) == 2
        for row in grid.images:
            assert len(row) == len(grid.columns)
            assert {image.shape for image in row if image is not None} == {(32, 32)}
    hybrids, restyled = grids[1:]
    assert isinstance(hybrids, ImageGrid) and isinstance(restyled, ImageGrid)
    assert restyled.columns[1] == "vendor_b"
    # On the diagonal an image's own codes: its reconstruction.
    images = torch.from_numpy(np.stack([row[0] for row in hybrids.images]))[:, None]
    with torch.no_grad():
        z, c = nets["style_encoder"](images).mean, nets["content_encoder"](images).mean
        again = nets["generator"](z, c)[:, 0].numpy()
    for index in range(2):
        np.testing.assert_allclose(hybrids.images[index][index + 1], again[index], atol=1e-6)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"halvings": 4}, (40, 40), r"40 x 40 pixels cannot be halved 4 times for method\.halvin"),
        ({"halvings": 5}, (32, 32), r"set data\.size to a multiple of 32 of at least 64"),
        ({"use": "content", "style_encoder": "kept"}, (32, 32), r"set method\.style_encoder=share"),
    ],
)
def test_networks_that_cannot_be_are_refused(
    settings: dict[str, object], size: tuple[int, int], message: str
) -> None:
    method = METHODS.build({"name": "drai", **settings})
    with pytest.raises(UserError, match=message):
        method.networks(replace(TASK, size=size))


def test_run_without_a_round_for_the_segmentation_is_refused() -> None:
    method = replace(SMALL, generation_rounds=6)
    with pytest.raises(UserError, match=r"rounds=6 leaves none .*\(method\.generation_rounds\)"):
        method.fit(phantom_site(), new_networks(method), {}, budget(1))


def test_diverged_training_is_refused_in_one_sentence() -> None:
    site = phantom_site()
    site.splits["train"][0].image[:] = np.nan
    with pytest.raises(UserError, match=r"diverged in round 1: lower method\.generator_lr"):
        SMALL.fit(site, new_networks(SMALL), {}, budget(1))


def test_generator_that_makes_one_image_only_is_refused_once_its_training_ends() -> None:
    method = replace(SMALL, generator_lr=0.0)
    nets = new_networks(method)
    nn.init.zeros_(nets["generator"].head.weight)
    method.fit(phantom_site(), nets, {}, budget(1))
    with pytest.raises(UserError, match=r"collapsed: by round 2 its images hardly differ"):
        method.fit(phantom_site(), nets, {}, budget(2))


def test_bank_without_this_sites_or_with_a_withheld_entry_is_no_hindrance() -> None:
    nets = new_networks(SMALL)
    report = SMALL.fit(phantom_site(), nets, {"vendor_b": {}}, budget(3))
    assert "segmenter" in report.trained
    assert "cifc_across" not in report.metrics


def test_reproduction_reads_the_mean_over_the_sites_of_the_last_round(tmp_path: Path) -> None:
    def line(first: float, second: float) -> str:
        names = p09_drai.METRICS.values()
        sites = {"a": dict.fromkeys(names, first), "b": dict.fromkeys(names, second)}
        return json.dumps({"sites": sites})

    (tmp_path / "rounds.jsonl").write_text(line(0, 0) + "\n" + line(1, 2) + "\n")
    found = p09_drai.last_metrics(tmp_path)
    assert found == dict.fromkeys(p09_drai.METRICS, 1.5)
    held = [claim.holds({"DAI": found, "DRAI": found}) for claim in p09_drai.PAPER.claims]
    # Equal rows: nothing is lower, and nothing was paid for it.
    assert held == [False, False, False, False, True, True]


# --- the paper's direction -----------------------------------------------------------------------


def disc_case(index: int, seed: int) -> Case:
    """64 slices of a disc in the middle: its size is the content, both brightnesses the style."""
    rng = np.random.default_rng([seed, index])
    y, x = np.mgrid[:16, :16] - 7.5
    shape = (64, 1, 1)
    label = (np.hypot(y, x) < rng.uniform(2, 7, shape)).astype(np.uint8)
    image = np.where(label, rng.uniform(0.6, 1.0, shape), rng.uniform(0.0, 0.4, shape))
    image = (image + rng.normal(0, 0.02, image.shape)).astype(np.float32)
    return mask_case(image, label)


def linear_fit(codes: np.ndarray, values: np.ndarray) -> float:
    """R^2 on the second half of a linear regression fitted to the first."""
    inputs = np.c_[codes, np.ones(len(codes))]
    half = len(values) // 2
    weights = np.linalg.lstsq(inputs[:half], values[:half], rcond=1e-2)[0]
    return 1 - np.mean((values[half:] - inputs[half:] @ weights) ** 2) / values[half:].var()


def test_constraints_keep_content_and_style_apart_without_a_collapse() -> None:
    """Havaei et al., Table 1: DRAI's CIFC is below DAI's. Seeds 0 and 1, 250 steps: as a share of
    the codes' spread it is lower in each, by a tenth in the mean, and the brightnesses can be read
    less well from the content codes; the reconstruction error is at most a quarter larger, and no
    code has collapsed. (CIFC itself also follows the codes' scale, which differs: at seed 1 DAI's
    style codes hardly vary.)"""
    dai = replace(DRAI(), halvings=2, size_bins=4, largest_size=0.9, generation_rounds=1,
                  generator_width=6, style=4, content=4, constraints=())  # fmt: skip
    drai = replace(dai, constraints=DRAI().constraints)
    task = Segmentation(("disc",), size=(16, 16))
    shares = []
    for seed in (0, 1):
        case = disc_case(1, seed)
        splits = {"train": (disc_case(0, seed),), "val": (case,), "test": ()}
        site = SiteData("discs", "train", ("disc",), splits)
        brightness = [
            np.array([i[0, k == j].mean() for i, k in zip(case.image, mask(case), strict=True)])
            for j in (0, 1)
        ]
        found, leaks = [], []
        for method in (dai, drai):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                nets = method.networks(task)
            method.fit(site, nets, {}, budget(1, steps=250, seed=seed))
            # The second round measures what the first has trained.
            found.append(method.fit(site, nets, {}, budget(2, steps=1)).metrics)
            with torch.no_grad():
                codes = nets["content_encoder"](torch.from_numpy(case.image)).mean.numpy()
            leaks.append(np.mean([linear_fit(codes, values) for values in brightness]))
        shares.append([metrics["cifc_relative"] for metrics in found])
        assert shares[-1][1] < shares[-1][0]
        assert found[1]["reconstruction"] < 1.25 * found[0]["reconstruction"]
        assert min(found[1]["style_variance"], found[1]["content_variance"]) > 0.02
        assert leaks[1] < leaks[0]
    plain, constrained = np.mean(shares, axis=0)
    assert constrained < 0.9 * plain
