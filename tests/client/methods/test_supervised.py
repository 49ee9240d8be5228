"""Supervised training on small drawn sites: determinism, direction, settings, bad input."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from kit.cases import mask, mask_case
from kit.repository import ROOT
from kit.steps import Penalised
from omegaconf import OmegaConf

from fedshift import UserError
from fedshift.client.augmentation import Augmentation
from fedshift.client.contract.method import Budget, Method, Networks, Scene
from fedshift.client.losses import dice_ce
from fedshift.client.methods import METHODS
from fedshift.client.methods.supervised import Supervised
from fedshift.client.slices import LabelledSlices
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.client.training import predict_slices, train
from fedshift.protocol.settings import from_mapping
from fedshift.sites.types import Case, SiteData

CPU = torch.device("cpu")
TASK = Segmentation(parts=("disc",))
SMALL = Supervised(width=6, depth=3, batch=8)
STEPS = 40


def disc_case(index: int, slices: int = 4, size: int = 32, labelled: bool = True) -> Case:
    """Discs of any place and radius, brighter than the ground by 0.4 to 0.6, and bright lines."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:size, :size]
    image = np.empty((slices, size, size), np.float32)
    label = np.empty((slices, size, size), np.uint8)
    for s in range(slices):
        cy, cx = rng.uniform(10, size - 10, 2)
        label[s] = np.hypot(y - cy, x - cx) < rng.uniform(4, 8)
        image[s] = 0.2 + rng.uniform(0.4, 0.6) * label[s] + rng.normal(0, 0.02, (size, size))
        image[s, rng.integers(size)] = 0.8
    return mask_case(
        image, label if labelled else None, id=f"case{index}", subject=f"subject{index}"
    )


def disc_site(cases: int = 8, labelled: bool = True) -> SiteData:
    train = tuple(disc_case(i, labelled=labelled) for i in range(cases))
    test = tuple(disc_case(100 + i) for i in range(4))
    return SiteData("discs", "train", ("disc",), {"train": train, "val": (), "test": test})


def new_networks(method: Method, seed: int = 0) -> Networks:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method.networks(TASK)


def fitted(method: Method, site: SiteData, steps: int, seed: int = 0) -> Networks:
    nets = new_networks(method, seed)
    method.fit(site, nets, {}, Budget(TASK, steps, seed, CPU))
    return nets


def weights(nets: Networks) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for net in nets.values() for p in net.parameters()])


def mean_dice(method: Method, nets: Networks, cases: tuple[Case, ...], noise: float = 0.0) -> float:
    rng = np.random.default_rng(7)
    scores = []
    for case in cases:
        noisy = case.image + rng.normal(0, noise, case.image.shape).astype(np.float32)
        found = method.predict(nets, noisy, Scene(TASK, "discs", CPU)).argmax(1) == 1
        truth = mask(case) == 1
        scores.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    return float(np.mean(scores))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clean() -> dict[int, Networks]:
    """Networks trained without noise, by seed."""
    torch.set_num_threads(1)
    return {seed: fitted(SMALL, disc_site(), STEPS, seed) for seed in (0, 1, 2)}


def test_short_training_finds_the_discs_that_an_untrained_network_misses(
    clean: dict[int, Networks],
) -> None:
    cases = disc_site().splits["test"]
    untrained = mean_dice(SMALL, new_networks(SMALL), cases)
    trained = mean_dice(SMALL, clean[0], cases)
    assert trained > 0.85
    assert trained > untrained + 0.4


def test_noise_augmentation_makes_the_network_robust_to_noise(clean: dict[int, Networks]) -> None:
    """The direction of the paper's Table 1 ("noisy U-Net"), mean of seeds 0, 1 and 2: at least 0.05
    Dice better on noisy images (0.14 when written), less than 0.1 lost on clean ones (0.03)."""
    site = disc_site()
    cases = site.splits["test"]
    polluted = Supervised(width=6, depth=3, batch=8, augmentation=Augmentation(noise=3.0))
    gains, losses = [], []
    for seed, nets in clean.items():
        noisy = fitted(polluted, site, STEPS, seed)
        gains.append(mean_dice(polluted, noisy, cases, 0.7) - mean_dice(SMALL, nets, cases, 0.7))
        losses.append(mean_dice(SMALL, nets, cases) - mean_dice(polluted, noisy, cases))
    assert np.mean(gains) > 0.05
    assert np.mean(losses) < 0.1


def test_equal_seeds_give_equal_bits_and_other_seeds_others() -> None:
    method = Supervised(
        width=4, depth=2, batch=4, augmentation=Augmentation(flip=True, intensity=0.5, noise=0.1)
    )
    site = disc_site(cases=2)
    first = new_networks(method)
    again, other = copy.deepcopy(first), copy.deepcopy(first)
    for nets, seed in ((first, 5), (again, 5), (other, 6)):
        method.fit(site, nets, {}, Budget(TASK, 4, seed, CPU))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_fit_neither_reads_nor_writes_a_global_generator() -> None:
    method = Supervised(
        width=4, depth=2, batch=4, augmentation=Augmentation(flip=True, intensity=0.5, noise=0.1)
    )
    site, start = disc_site(cases=2), new_networks(method)
    results = []
    for global_seed in (1, 2):
        nets = copy.deepcopy(start)
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        method.fit(site, nets, {}, Budget(TASK, 3, 0, CPU))
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
        results.append(weights(nets))
    assert torch.equal(*results)


def test_one_step_is_adams_first_step_on_the_batch() -> None:
    """Without augmentation and with the whole site in a batch: w - lr * g / (|g| + eps)."""
    method = Supervised(width=4, depth=2, batch=8, lr=0.01, augmentation=Augmentation(affine=False))
    site, nets = disc_site(cases=2), new_networks(method)
    net = copy.deepcopy(nets)["segmenter"]
    images = torch.from_numpy(np.concatenate([c.image for c in site.splits["train"]]))
    labels = torch.from_numpy(np.concatenate([mask(c) for c in site.splits["train"]]))
    loss = dice_ce(net(images), labels)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    report = method.fit(site, nets, {}, Budget(TASK, 1, 0, CPU))
    assert report.metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for new, old, gradient in zip(
        nets["segmenter"].parameters(), net.parameters(), gradients, strict=True
    ):
        # Where the gradient is near zero its sign depends on the order of the batch.
        sure = gradient.abs() > 1e-5
        expected = old - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(new[sure], expected[sure], rtol=0, atol=2e-5)


def test_penalty_is_added_to_the_loss_at_every_step() -> None:
    site, start = disc_site(cases=2), new_networks(SMALL)
    origin = weights(start)

    def pull(nets: dict[str, torch.nn.Module]) -> torch.Tensor:
        moved = torch.cat([p.flatten() for p in nets["segmenter"].parameters()]) - origin
        return 1e3 * moved.square().sum()

    free, held = copy.deepcopy(start), copy.deepcopy(start)
    SMALL.fit(site, free, {}, Budget(TASK, 10, 0, CPU))
    report = SMALL.fit(site, held, {}, Budget(TASK, 10, 0, CPU, step=Penalised(pull)))
    assert (weights(held) - origin).norm() < 0.5 * (weights(free) - origin).norm()
    assert report.metrics["penalty"] > 0


def test_spoiled_image_is_reported_as_steps_with_a_non_finite_gradient() -> None:
    site = disc_site(cases=1)
    site.splits["train"][0].image[0, 0, 3, 3] = np.nan
    report = SMALL.fit(site, new_networks(SMALL), {}, Budget(TASK, 3, 0, CPU))
    assert report.metrics["nonfinite_steps"] == 3
    healthy = SMALL.fit(disc_site(cases=1), new_networks(SMALL), {}, Budget(TASK, 3, 0, CPU))
    assert healthy.metrics["nonfinite_steps"] == 0


def test_site_without_labels_trains_nothing() -> None:
    nets = new_networks(SMALL)
    before = weights(nets)
    report = SMALL.fit(disc_site(labelled=False), nets, {}, Budget(TASK, 3, 0, CPU))
    assert (report.trained, report.metrics) == ({}, {})
    assert torch.equal(weights(nets), before)


def test_unlabelled_slices_never_reach_a_batch_and_the_others_equally_often() -> None:
    case = disc_case(0, slices=5)
    case.labelled[:] = [True, False, True, True, False]
    slices = LabelledSlices([case, disc_case(1, labelled=False)], TASK)
    assert len(slices) == 3
    seen = []
    for batch in slices.batches(2, 6, seed=0, device=CPU):
        images, labels = batch.images, batch.labels
        assert (images.shape, labels.shape) == ((2, 1, 32, 32), (2, 32, 32))
        for image, label in zip(images.numpy(), labels.numpy(), strict=True):
            (index,) = [s for s in range(5) if np.array_equal(case.image[s], image)]
            assert np.array_equal(mask(case)[index], label)
            seen.append(index)
    assert sorted(seen) == [0] * 4 + [2] * 4 + [3] * 4


def test_batch_is_the_whole_site_when_the_site_is_smaller() -> None:
    slices = LabelledSlices([disc_case(0, slices=3)], TASK)
    (batch,) = slices.batches(8, 1, seed=0, device=CPU)
    assert len(batch) == 3
    assert len({image.tobytes() for image in batch.images.numpy()}) == 3


def test_fit_counts_the_labelled_slices_of_the_training_split() -> None:
    site = disc_site(cases=2)
    site.splits["train"][0].labelled[1] = False
    report = SMALL.fit(site, new_networks(SMALL), {}, Budget(TASK, 1, 0, CPU))
    assert report.trained == {"segmenter": 7}


def test_prediction_in_parts_equals_one_forward_pass() -> None:
    nets = new_networks(SMALL)
    images = np.concatenate([disc_case(i).image for i in range(10)])
    found = SMALL.predict(nets, images, Scene(TASK, "discs", CPU))
    with torch.no_grad():
        expected = nets["segmenter"](torch.from_numpy(images)).softmax(1).numpy()
    assert (found.shape, found.dtype) == ((40, 2, 32, 32), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_prediction_of_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="no image"):
        predict_slices(new_networks(SMALL)["segmenter"], [], Scene(TASK, "discs", CPU))


def test_features_are_the_pooled_last_encoder_block() -> None:
    nets = new_networks(SMALL)
    images = torch.from_numpy(disc_case(0).image)
    features = SMALL.features(nets, images)
    expected = nets["segmenter"].encode(images)[-1].detach().numpy().mean((2, 3))
    assert features.shape == (4, 6 * 4)
    np.testing.assert_allclose(features.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"method=supervized .* did you mean supervised\?"):
        METHODS.build({"name": "supervized"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widht": 8}, r"method\.widht is not a setting; did you mean width\?"),
        ({"augmentation": {"nois": 1}}, r"augmentation\.nois .* did you mean noise\?"),
        ({"colour": 1}, r"method\.colour is not a setting; choose from augmentation, batch"),
        ({"width": 0}, r"method\.width must be at least 1, not 0"),
        ({"width": 8.5}, r"method\.width must be of type int, not 8\.5"),
        ({"width": True}, r"method\.width must be of type int, not True"),
        ({"lr": "fast"}, r"method\.lr must be of type float, not 'fast'"),
        ({"lr": float("nan")}, r"method\.lr must be a finite number, not nan"),
        ({"norm": "layer"}, r"method\.norm must be one of instance, group, batch, none"),
        ({"augmentation": 1}, r"method\.augmentation must be a group of settings, not 1"),
        ({"augmentation": {"intensity": 2}}, r"intensity must be at most 1, not 2"),
        ({"augmentation": {"affine": 1}}, r"augmentation\.affine must be of type bool, not 1"),
    ],
)
def test_wrong_setting_is_refused_by_its_key(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        METHODS.build({"name": "supervised", **settings})


def test_integer_is_accepted_for_a_float() -> None:
    method = METHODS.build({"name": "supervised", "lr": 1})
    assert isinstance(method, Supervised)
    assert (method.lr, type(method.lr)) == (1.0, float)


def test_every_setting_is_in_the_config_with_the_codes_default() -> None:
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/method/supervised.yaml"))
    assert isinstance(config, dict)
    name = config.pop("name")
    assert METHODS.build({"name": name, **config}) == Supervised()
    # The augmentation is a group of its own.
    assert set(config) == set(Supervised.__dataclass_fields__) - {"augmentation"}
    usual = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/augmentation/usual.yaml"))
    assert from_mapping(Augmentation, usual) == Augmentation()
    assert set(usual) == {field.name for field in dataclasses.fields(Augmentation)}


def test_paper_preset_is_the_papers_network_and_optimiser() -> None:
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/_presets/paper/supervised.yaml"))
    assert isinstance(config, dict)
    method = METHODS.build(
        {"name": "supervised", **config["method"], "augmentation": config["augmentation"]}
    )
    assert isinstance(method, Supervised)
    assert (method.lr, method.batch, config["data"]["size"]) == (1e-4, 10, 192)
    assert not method.augmentation.affine
    # 35 epochs of 3920 images.
    assert config["rounds"] * config["local_steps"] * method.batch == 35 * 3920
    assert len(method.networks(TASK)["segmenter"].encoder) >= 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", [False, True])
def test_gpu_training_finds_the_discs(amp: bool) -> None:
    site, device = disc_site(), torch.device("cuda")
    nets = new_networks(SMALL)
    report = SMALL.fit(site, nets, {}, Budget(TASK, STEPS, 0, device, amp=amp))
    assert np.isfinite(report.metrics["loss"])
    case = site.splits["test"][0]
    found = SMALL.predict(nets, case.image, Scene(TASK, "discs", device)).argmax(1) == 1
    truth = mask(case) == 1
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_follows_the_cpu_for_the_first_steps() -> None:
    losses = []
    for device in (CPU, torch.device("cuda")):
        metrics = train(
            new_networks(SMALL),
            "segmenter",
            LabelledSlices(disc_site(cases=2).splits["train"], TASK),
            batch=8,
            learning_rate=1e-3,
            augmentation=Augmentation(),
            budget=Budget(TASK, 3, 0, device),
        )
        losses.append(metrics["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
