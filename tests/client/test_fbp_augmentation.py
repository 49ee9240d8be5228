"""FBPAug and what it is compared with: the formulas, the draws, and the paper's direction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from kit.repository import ROOT

from fedshift import UserError, derive_seed
from fedshift.client.augmentation import Augmentation, warp_mask
from fedshift.client.contract.method import Budget, Scene
from fedshift.client.methods.supervised import Supervised
from fedshift.client.metrics import dice
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.runs.config import load
from fedshift.sites import DataSettings, load_federation, open_site
from fedshift.sites.prepare import prepare_phantom
from fedshift.sites.tomography import inside_circle, tomograph
from fedshift.sites.types import Domain, ImageSource

CPU = torch.device("cpu")
NAMES = ("fbp", "gamma", "intensity", "noise", "none", "usual", "windowing")
CHEST = 1.0, 40
"""The value of tissue, and the radius of a disc of it in the air of a 128 x 128 slice."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chests(count: int, size: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth discs with corners that no reconstruction reaches, and their labels."""
    offset = torch.arange(size) - size // 2
    distance = torch.hypot(offset[:, None].float(), offset.float())
    image = CHEST[0] * torch.sigmoid((CHEST[1] * size / 128 - distance) / 2)
    image[0, 0] = 0.7
    return image.repeat(count, 1, 1, 1), (image > 0.5).to(torch.uint8).repeat(count, 1, 1)


def test_a_slice_is_projected_and_reconstructed_with_the_kernel_that_was_drawn() -> None:
    images, labels = chests(8)
    found, truth = Augmentation(affine=False, fbp=1.0)(images, labels, generator(3), warp_mask)
    _, kind, place_a, place_b = torch.rand(4, 8, generator=generator(3)).numpy()
    assert 0 < (kind < 0.5).sum() < 8
    inside = inside_circle(128)
    scanner = tomograph(128, 128, CPU)
    for k in range(8):
        if kind[k] < 0.5:
            a, b = 10 + 30 * place_a[k], 1 + 3 * place_b[k]
        else:
            a, b = -1 + place_a[k], 0.1 + 0.9 * place_b[k]
        # 0 is -1000 HU, 1 is 100 HU: 1.1 times the attenuation of water.
        water = scanner.reconstruct(scanner.project(1.1 * images[k]), float(a), float(b))[0]
        expected = torch.where(torch.from_numpy(inside), water.clamp(0, 4) / 1.1, images[k, 0])
        torch.testing.assert_close(found[k, 0], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(truth, labels)
    assert (found[:, 0, 0, 0] == 0.7).all()


def test_the_share_decides_how_many_slices_change() -> None:
    images, labels = chests(200, size=32)
    found, _ = Augmentation(affine=False, fbp=0.5)(images, labels, generator(), warp_mask)
    changed = (found != images).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(found[~changed], images[~changed])


def test_air_may_have_any_value() -> None:
    """Other units of the same image give the same change: only the place of air matters."""
    images, labels = chests(6, size=64)
    found, _ = Augmentation(affine=False, fbp=1.0)(images, labels, generator(), warp_mask)
    raw = Augmentation(affine=False, fbp=1.0, hu_at_0=0.0, hu_at_1=1.0)
    hounsfield, _ = raw(1100 * images - 1000, labels, generator(), warp_mask)
    torch.testing.assert_close(hounsfield, 1100 * found - 1000, rtol=1e-3, atol=0.1)


def test_hounsfield_units_are_cut_after_the_reconstruction() -> None:
    images, labels = chests(16, size=64)
    noisy = images + 0.2 * torch.randn(images.shape, generator=generator(1))
    found, _ = Augmentation(affine=False, fbp=1.0)(noisy, labels, generator(), warp_mask)
    inside = torch.from_numpy(inside_circle(64))
    seen = found[:, 0, inside]
    assert seen.min() == pytest.approx(0.0, abs=1e-6)
    assert seen.max() == pytest.approx(4 / 1.1, abs=1e-5)


def test_gamma_bends_each_slice_within_its_own_range() -> None:
    images = torch.rand(500, 1, 8, 8, generator=generator(1)) * 3 - 1
    labels = torch.zeros(500, 8, 8, dtype=torch.uint8)
    found, _ = Augmentation(affine=False, gamma=0.2)(images, labels, generator(), warp_mask)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    before, after = (images - low) / (high - low), (found - low) / (high - low)
    # Away from 0 and 1, where the logarithms' ratio says nothing.
    middle = (before > 0.2) & (before < 0.8)
    exponent = torch.log(after) / torch.log(before)
    each = torch.stack([e[m].median() for e, m in zip(exponent, middle, strict=True)])
    torch.testing.assert_close(before ** each.view(-1, 1, 1, 1), after, rtol=1e-3, atol=1e-4)
    assert torch.log(each).mean() == pytest.approx(0, abs=0.03)
    assert torch.log(each).std() == pytest.approx(0.2, abs=0.02)


def test_windowing_cuts_at_the_drawn_window() -> None:
    images = torch.linspace(-0.5, 2.5, 64).repeat(300, 1, 1, 1).view(300, 1, 8, 8)
    labels = torch.zeros(300, 8, 8, dtype=torch.uint8)
    found, _ = Augmentation(affine=False, windowing=0.5)(images, labels, generator(), warp_mask)
    chance, centre, width = torch.rand(3, 300, generator=generator()).double().numpy()
    for k in range(300):
        hu = -1000 + 1100 * images[k].double().numpy()
        if chance[k] < 0.5:
            middle, half = -700 + 200 * centre[k], (1300 + 400 * width[k]) / 2
            hu = np.clip(hu, middle - half, middle + half)
        np.testing.assert_allclose(found[k].numpy(), (hu + 1000) / 1100, atol=1e-5)
    cut = (found != images).flatten(1).any(1)
    assert cut.float().mean() == pytest.approx(0.5, abs=0.1)


def test_equal_generators_give_equal_slices_and_no_global_one_is_touched() -> None:
    images, labels = chests(4, size=32)
    augment = Augmentation(fbp=0.5, gamma=0.2, windowing=0.5)
    state = torch.random.get_rng_state()
    first, again = (
        augment(images, labels, generator(1), warp_mask),
        augment(images, labels, generator(1), warp_mask),
    )
    other = augment(images, labels, generator(2), warp_mask)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_slices_that_are_not_square_are_refused_with_the_way_out() -> None:
    images, labels = torch.zeros(2, 1, 16, 32), torch.zeros(2, 16, 32, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"square slices, not 16 x 32; .*augmentation\.fbp=0"):
        Augmentation(fbp=0.5)(images, labels, generator(), warp_mask)


def test_hounsfield_units_that_do_not_rise_are_refused() -> None:
    with pytest.raises(UserError, match=r"hu_at_1=-1000 must be above hu_at_0=-1000"):
        Augmentation(hu_at_1=-1000.0)


def test_every_config_sets_every_field_and_the_usual_one_is_the_default() -> None:
    folder = ROOT / "configs" / "augmentation"
    assert tuple(sorted(path.stem for path in folder.glob("*.yaml"))) == NAMES
    fields = [field.name for field in dataclasses.fields(Augmentation)]
    for name in NAMES:
        node = load([f"augmentation={name}"])["augmentation"]
        assert list(node) == fields
        written = yaml.safe_load((folder / f"{name}.yaml").read_text())
        assert node == written
    usual = Augmentation(**load([])["augmentation"])
    assert usual == Augmentation()


def test_fbp_runs_in_a_federation_under_every_strategy(
    simulate: Callable[..., Path], tmp_path: Path
) -> None:
    for strategy in ("fedavg", "fedprox", "fedbn"):
        run = simulate(
            tmp_path / strategy,
            "federation=ct_phantom",
            "federation.subjects=6",
            "federation.slices=2",
            "federation.size=32",
            "augmentation=fbp",
            "baselines=[]",
            f"strategy={strategy}",
        )
        assert (run / "cross_site.csv").exists()


def test_networks_agree_across_kernels_when_trained_with_fbp() -> None:
    """The paper's direction, on one seed and 30 pairs of the same sinogram. Against the baseline
    the agreement of soft and sharp predictions rises by at least 0.1, and so does Dice under the
    sharp kernel (0.18 to 0.30 on seeds 7 to 9); under the soft one, on which both train, it falls
    by at most 0.05."""
    seed, size = 7, 48
    node = {
        "name": "ct",
        "kind": "phantom",
        "anatomy": "ct",
        "shift": 1.0,
        "sites": {"soft": ["vendor_a"]},
        "subjects": 40,
        "slices": 4,
        "size": size,
    }
    data = DataSettings()
    federation = load_federation(node, data, seed)
    home = open_site(federation.sites[0], federation.parts, data, seed)
    task = Segmentation(parts=federation.parts)

    def pair(number: int, vendor: str) -> tuple[np.ndarray, np.ndarray]:
        recipe = {"anatomy": "ct", "vendor": vendor, "subject": f"pair-{number}", "seed": seed}
        recipe |= {"shift": 1.0, "size": size, "slices": 4}
        source = ImageSource("pair", "pair", Domain(vendor), phantom=recipe)
        prepared = prepare_phantom(source, data)
        assert prepared.label is not None
        return prepared.image[:, None], prepared.label.grid == 1

    scores = {}
    for name, augment in (("baseline", Augmentation()), ("fbp", Augmentation(fbp=0.5))):
        method = Supervised(width=8, depth=3, augmentation=augment)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "weights") % 2**31)
            nets = method.networks(task)
        method.fit(home, nets, {}, Budget(task, 250, seed, CPU))
        rows = []
        for number in range(30):
            found = []
            for vendor in ("vendor_a", "vendor_c"):
                image, truth = pair(number, vendor)
                found.append(method.predict(nets, image, Scene(task, "soft", CPU)).argmax(1) == 1)
            rows.append([dice(truth, found[0]), dice(truth, found[1]), dice(*found)])
        scores[name] = np.mean(rows, axis=0)
    gain = scores["fbp"] - scores["baseline"]
    assert scores["baseline"][0] > 0.5, scores
    assert gain[2] >= 0.1 and gain[1] >= 0.1 and gain[0] >= -0.05, scores


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_draws_the_same_kernels_as_the_cpu() -> None:
    images, labels = chests(8, size=64)
    augment = Augmentation(affine=False, fbp=0.5, gamma=0.2, windowing=0.5)
    on_cpu, _ = augment(images, labels, generator(1), warp_mask)
    on_gpu, _ = augment(images.cuda(), labels.cuda(), generator(1), warp_mask)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-3)
