"""Domain generalisation at the sites: amplitude spectra against NumPy, the exchange and the
normalisation of amplitudes by hand, and small runs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kit.cases import mask_case, segmentation
from scipy import ndimage
from torch.nn import functional as F

from fedshift import derive_seed
from fedshift.client import rules
from fedshift.client.contract.method import Budget, FitReport, Scene, of_method
from fedshift.client.losses import dice_ce
from fedshift.client.model import Model
from fedshift.client.networks.lv_unet import LVUNet
from fedshift.client.rules.amplitude_exchange import DEVIATION, MEAN
from fedshift.client.rules.base import LocalRule, Visit, published_beside
from fedshift.client.rules.base.episodes import BAND, Episode, bands, boundary_loss
from fedshift.client.rules.base.spectra import Window, amplitude, moments, with_amplitude
from fedshift.client.rules.harmonised import AMPLITUDE, Harmonised, mean_amplitude
from fedshift.client.slices import LabelledSlices
from fedshift.client.training import train
from fedshift.protocol.messages import Action, Arrays, Instruction
from fedshift.protocol.storage import read_tensors
from fedshift.sites.types import Case, SiteData

CPU = torch.device("cpu")
SIZES = [(8, 6), (7, 9), (8, 9)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype("f4"))


def spectrum(images: torch.Tensor) -> np.ndarray:
    """NumPy's transform in double precision, frequency 0 in the middle."""
    found = np.fft.fft2(images.double().numpy(), norm="ortho")
    return np.fft.fftshift(found, axes=(-2, -1))


def case(images: np.ndarray, name: str = "one") -> Case:
    label = (images > 0.5).astype(np.uint8)
    return mask_case(images, label, id=name, subject=name)


def site(size: tuple[int, int] = (8, 8)) -> SiteData:
    cases = tuple(case(drawn(3, *size, seed=k).numpy() + 1, str(k)) for k in range(2))
    return SiteData("a", "train", ("spot",), {"train": cases, "val": (), "test": ()})


# Spectra.


@pytest.mark.parametrize("size", SIZES)
def test_an_image_takes_an_amplitude_and_keeps_its_phase(size: tuple[int, int]) -> None:
    images, other = drawn(2, 1, *size), drawn(*size, seed=1)
    found = with_amplitude(images, amplitude(other))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(
        np.abs(spectrum(found)), np.abs(spectrum(other))[None, None].repeat(2, 0), atol=1e-5
    )
    turned = spectrum(found) * np.conj(spectrum(images))
    np.testing.assert_allclose(turned.imag, 0, atol=1e-4)
    assert turned.real.min() > -1e-4
    np.testing.assert_allclose(
        with_amplitude(images[0], amplitude(images[0, 0])), images[0], atol=1e-5
    )


@pytest.mark.parametrize("size", SIZES)
def test_the_window_is_the_middle_of_the_centred_spectrum(size: tuple[int, int]) -> None:
    window = Window(size, reach=0.25)
    rows, columns = window.shape
    assert (rows, columns) == (2 * int(size[0] / 4) + 1, 2 * int(size[1] / 4) + 1)
    images = drawn(2, *size)
    centred = np.abs(spectrum(images))
    top, left = size[0] // 2 - rows // 2, size[1] // 2 - columns // 2
    expected = centred[:, top : top + rows, left : left + columns]
    np.testing.assert_allclose(window.of(amplitude(images)), expected, rtol=1e-4)


def test_a_window_never_reaches_the_highest_frequency_of_an_even_side() -> None:
    assert Window((8, 9), reach=0.5).shape == (7, 9)
    assert Window((8, 9), reach=0.0).shape == (1, 1)


@pytest.mark.parametrize("size", SIZES)
def test_low_amplitudes_are_interpolated_and_all_else_stays(size: tuple[int, int]) -> None:
    window = Window(size, reach=0.3)
    images = drawn(3, 1, *size)
    noise = window.noise(3, torch.Generator().manual_seed(0))
    towards, share = 2 + 0.3 * noise, torch.tensor([0.0, 0.25, 1.0])
    found = window.interpolate(images, towards, share)
    np.testing.assert_allclose(found[0], images[0], atol=1e-5)
    before, after = spectrum(images)[:, 0], spectrum(found)[:, 0]
    inside = np.zeros(size, bool)
    rows, columns = window.shape
    top, left = size[0] // 2 - rows // 2, size[1] // 2 - columns // 2
    inside[top : top + rows, left : left + columns] = True
    np.testing.assert_allclose(after[:, ~inside], before[:, ~inside], atol=1e-5)
    weight = share.numpy()[:, None]
    wanted = (1 - weight) * np.abs(before[:, inside]) + weight * towards.reshape(3, -1).numpy()
    np.testing.assert_allclose(np.abs(after[:, inside]), wanted, atol=1e-4)
    np.testing.assert_allclose(np.angle(after / before), 0, atol=1e-3)


def test_noise_is_standard_normal_and_alike_at_opposite_frequencies() -> None:
    noise = Window((16, 20), reach=0.2).noise(4000, torch.Generator().manual_seed(3))
    assert noise.shape == (4000, 7, 9)
    assert torch.equal(noise, noise.flip(1, 2))
    np.testing.assert_allclose(noise.std(dim=0), 1, atol=0.06)
    np.testing.assert_allclose(noise.mean(dim=0), 0, atol=0.08)


def test_moments_are_over_all_slices() -> None:
    stacks = [drawn(40, 7, 6), drawn(3, 7, 6, seed=1)]
    mean, deviation = moments([case(stack.numpy()) for stack in stacks], CPU)
    amplitudes = np.abs(np.fft.fft2(torch.cat(stacks).double().numpy(), norm="ortho"))
    np.testing.assert_allclose(mean, amplitudes.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(deviation, amplitudes.std(axis=0), rtol=1e-4, atol=1e-6)


def test_the_mean_is_over_the_sites_that_published_one() -> None:
    assert mean_amplitude({"a": {"style": np.ones(1)}}) is None
    bank = {
        "a": {AMPLITUDE: np.full((2, 2), 1.0, "f4")},
        "b": {},
        "c": {AMPLITUDE: np.full((2, 2), 4.0, "f4")},
    }
    np.testing.assert_array_equal(mean_amplitude(bank), np.full((2, 2), 2.5))


# The rules.


def at_work(
    name: str, settings: dict[str, Any], bank: dict[str, Arrays], round: int = 2
) -> tuple[Callable[[torch.Tensor], torch.Tensor] | None, FitReport, Visit]:
    """What the rule makes of images in training, if anything, its report, and its visit."""
    instruction = Instruction(action=Action.FIT, seed=0, round=round, rules={name: settings})
    data = site()
    model: Any = SimpleNamespace(task=segmentation("spot"))
    told = Visit(instruction, data, model, CPU, bank=bank)
    (rule,) = rules.build(told)
    assert isinstance(rule, LocalRule)
    report = rule.around(lambda **asked: FitReport({"segmenter": 6}))
    if isinstance(rule.step, Episode):
        return rule.step.elsewhere, report, told
    return rule.step and rule.step.change, report, told


def flat(value: float, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.full(size, value, "f4")


def test_harmofl_normalises_to_its_own_amplitude_until_there_is_a_mean() -> None:
    images = drawn(2, 1, 8, 8, seed=9)
    own = moments(site().splits["train"], CPU)[0]
    appearance, report, told = at_work("harmonised", {}, {})
    assert appearance is not None
    np.testing.assert_allclose(amplitude(appearance(images))[1, 0], own, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(report.statistics[AMPLITUDE], own)
    assert report.summarised == 6
    np.testing.assert_array_equal(told.memory[AMPLITUDE], own)

    bank = {"a": {AMPLITUDE: flat(1)}, "b": {AMPLITUDE: flat(3)}}
    appearance, report, _ = at_work("harmonised", {}, bank)
    assert appearance is not None
    np.testing.assert_allclose(amplitude(appearance(images))[0, 0], flat(2), rtol=1e-4)
    np.testing.assert_array_equal(report.statistics[AMPLITUDE], own)


EXCHANGE = {"reach": 0.25, "inner_lr": 0.01, "boundary": 0.1, "temperature": 0.05}


def low(value: float, deviation: float = 0.0) -> Arrays:
    return {MEAN: flat(value, (5, 5)), DEVIATION: flat(deviation, (5, 5))}


def test_amplitudes_lie_between_the_image_and_the_other_site() -> None:
    images = drawn(50, 1, 8, 8, seed=9)
    appearance, _, _ = at_work("amplitude_exchange", EXCHANGE, {"a": low(500), "b": low(7)})
    assert appearance is not None
    window = Window((8, 8), 0.25)
    before, after = (window.of(amplitude(batch[:, 0])) for batch in (images, appearance(images)))
    # One lambda an image: (after - before) / (7 - before). The site's own 500 is never used.
    towards = (after - before) / (7 - before)
    np.testing.assert_allclose(towards, towards[:, :1, :1].expand_as(towards), atol=1e-3)
    values = towards[:, 0, 0]
    assert 0 <= values.min() < 0.1
    assert 0.9 < values.max() <= 1
    assert float(values.mean()) == pytest.approx(0.5, abs=0.1)


def test_another_site_is_drawn_with_its_spread() -> None:
    images = drawn(400, 1, 8, 8, seed=9)
    bank = {"b": low(4, deviation=8), "c": low(60)}
    appearance, _, _ = at_work("amplitude_exchange", EXCHANGE, bank)
    assert appearance is not None
    found = appearance(images)
    middle = Window((8, 8), 0.25).of(amplitude(found[:, 0])).mean(dim=(1, 2))
    assert (middle > 20).any()
    assert (middle < 6).any()
    assert found.isfinite().all(), "a drawn amplitude is never below 0"


def test_nothing_is_moved_before_others_have_published() -> None:
    appearance, report, told = at_work("amplitude_exchange", EXCHANGE, {"a": low(500)})
    assert appearance is None
    mean, deviation = moments(site().splits["train"], CPU)
    for name, expected in ((MEAN, mean), (DEVIATION, deviation)):
        windowed = Window((8, 8), 0.25).of(torch.from_numpy(expected)).numpy()
        np.testing.assert_array_equal(report.statistics[name], windowed)
        np.testing.assert_array_equal(told.memory[name], windowed)


def test_draws_depend_on_the_round_alone() -> None:
    images = drawn(6, 1, 8, 8)
    bank = {"b": low(4, deviation=2)}

    def moved(number: int) -> torch.Tensor:
        appearance, _, _ = at_work("amplitude_exchange", EXCHANGE, bank, number)
        assert appearance is not None
        return appearance(images)

    assert torch.equal(moved(2), moved(2))
    assert not torch.equal(moved(2), moved(3))


# Episodes.


def shown(size: int = 12) -> np.ndarray:
    """Two structures on two slices (2, 12, 12): a square of both, and one of the first alone."""
    labels = np.zeros((2, size, size), np.int64)
    labels[0, 3:9, 3:9] = 1
    labels[0, 5:7, 5:7] = 2
    labels[1, 0:5, 4:10] = 1
    return labels


def test_bands_lie_on_both_sides_of_a_boundary_and_not_along_the_images_edge() -> None:
    labels = shown()
    for truth in (labels == 1, labels == 2):
        inside, outside = (
            band.numpy() for band in bands(torch.from_numpy(truth), torch.from_numpy(~truth))
        )
        square = np.ones((2 * BAND + 1,) * 2, bool)
        for k in range(2):
            core = ndimage.binary_erosion(truth[k], square, border_value=1)
            np.testing.assert_array_equal(inside[k], truth[k] & ~core)
            np.testing.assert_array_equal(
                outside[k], ndimage.binary_dilation(truth[k], square) & ~truth[k]
            )
    assert not inside[1].any() and not outside[1].any()


def test_the_contrast_at_the_boundary_by_loops() -> None:
    """Of three images and two structures, the second shown by two of them."""
    labels = np.concatenate([shown(), shown()[:1, ::-1]])
    features = drawn(3, 5, 12, 12).double().numpy()
    temperature = 0.3
    expected = []
    for structure in (1, 2):
        found = []
        for k in range(3):
            truth = torch.from_numpy(np.ascontiguousarray(labels[k : k + 1] == structure))
            for side, band in enumerate(bands(truth, ~truth)):
                if truth.any():
                    mean = features[k][:, band[0].numpy()].mean(axis=1)
                    found.append((side, mean / np.linalg.norm(mean)))
        terms = []
        for m, (side, h) in enumerate(found):
            against = sum(np.exp(h @ q / temperature) for other, q in found if other != side)
            terms += [
                -np.log(np.exp(h @ p / temperature) / (np.exp(h @ p / temperature) + against))
                for index, (other, p) in enumerate(found)
                if other == side and index != m
            ]
        expected.append(np.mean(terms))
    given = torch.from_numpy(features).float().requires_grad_()
    loss = boundary_loss(given, torch.from_numpy(labels.copy()), 3, temperature)
    assert float(loss.detach()) == pytest.approx(np.sum(expected), rel=1e-4)
    loss.backward()
    assert given.grad is not None and given.grad.isfinite().all()
    nothing = boundary_loss(given, torch.zeros(3, 12, 12, dtype=torch.int64), 3, temperature)
    assert float(nothing.detach()) == 0


@pytest.mark.parametrize("boundary", [0.0, 0.5])
def test_a_step_follows_both_gradients_and_the_second_where_the_first_leads(
    boundary: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a copy of the network that is moved by hand."""
    torch.manual_seed(0)
    net = LVUNet(1, 3, width=4, depth=3, blocks=1, norm="batch").train()
    other = copy.deepcopy(net)
    labels = np.repeat(shown(16), 3, axis=0)
    cases = [mask_case(drawn(6, 16, 16).numpy(), labels.astype(np.uint8))]
    task = segmentation("one", "two")
    episode = Episode(lambda images: 2 * images.flip(-1) + 1, 0.05, boundary, 0.2, task)
    followed: list[torch.Tensor] = []
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda self, *a, **k: followed.extend(p.grad.clone() for p in net.parameters()),
    )
    slices = LabelledSlices(cases, task)
    before = [p.detach().clone() for p in net.parameters()]
    train(
        {"segmenter": net},
        "segmenter",
        slices,
        batch=4,
        learning_rate=0.1,
        augmentation=lambda images, labels, generator, warp: (images, labels),
        budget=Budget(task, 1, 7, CPU, step=episode),
    )
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))

    (batch,) = slices.batches(4, 1, derive_seed(7, "batches"), CPU)
    images, truth = batch.images, batch.labels
    moved = episode.elsewhere(images)
    first = torch.autograd.grad(dice_ce(other(images), truth), list(other.parameters()))
    counted = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with torch.no_grad():
        for p, gradient in zip(other.parameters(), first, strict=True):
            p.sub_(0.05 * gradient)
    seen: list[list[torch.Tensor]] = []
    loss = dice_ce(other(moved), truth)
    if boundary:
        seen = [other.decode(batch)[-2:] for batch in (images, moved)]
        fused = torch.cat(
            [
                torch.cat([F.interpolate(a, scale_factor=2.0, mode="bilinear"), b], dim=1)
                for a, b in seen
            ]
        )
        loss = loss + boundary * boundary_loss(fused, torch.cat([truth, truth]), 3, 0.2)
    second = torch.autograd.grad(loss, list(other.parameters()))
    for found, one, two in zip(followed, first, second, strict=True):
        torch.testing.assert_close(found, one + two, rtol=1e-4, atol=1e-6)
    buffers = {name for name, _ in net.named_buffers()}
    for name in buffers:  # Running statistics are those of the site's own images.
        torch.testing.assert_close(net.state_dict()[name], counted[name])


# Beside the method.


def test_the_fewest_images_behind_a_statistic_count() -> None:
    report = published_beside(FitReport(statistics={"style": np.ones(1)}, summarised=3), {}, 9)
    assert report.summarised == 3
    report = published_beside(FitReport(), {"rule.x": np.ones(1)}, 9)
    assert (report.summarised, list(report.statistics)) == (9, ["rule.x"])


def test_a_method_does_not_see_what_rules_publish() -> None:
    bank = {"a": {"style": np.ones(1), AMPLITUDE: flat(1)}, "b": {AMPLITUDE: flat(1)}}
    assert of_method(bank) == {"a": {"style": np.ones(1)}}


def test_images_are_predicted_harmonised() -> None:
    model = Model(
        {"name": "supervised", "width": 4, "depth": 2},
        {"name": "segmentation", "parts": ["spot"]},
        CPU,
        seed=0,
    )
    images = drawn(40, 1, 8, 8).numpy()
    scene = Scene(model.task, "a", CPU)
    plain = model.method.predict(model.nets, images, scene)
    wanted = amplitude(drawn(8, 8, seed=2))
    common = replace(scene, bank={"b": {AMPLITUDE: wanted.numpy()}})
    # Without the rule, or a published spectrum, images are predicted as they are.
    for asked, where in (({}, common), ({"harmonised": {}}, scene)):
        np.testing.assert_array_equal(rules.predictor(model, where, asked)(images), plain)
    harmonising = rules.predictor(model, common, {"harmonised": {}})
    found = harmonising(images)
    shown = with_amplitude(torch.from_numpy(images), wanted).numpy()
    expected = model.method.predict(model.nets, shown, scene)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - plain).max() > 1e-3
    # A scanner that changes nothing but amplitudes makes no difference any more.
    gain = 0.5 + amplitude(drawn(8, 8, seed=3))
    scanned = torch.fft.ifft2(torch.fft.fft2(torch.from_numpy(images)) * gain).real.numpy()
    np.testing.assert_allclose(harmonising(scanned), found, atol=1e-4)
    assert np.abs(model.method.predict(model.nets, scanned, scene) - plain).max() > 1e-2


# Small runs.

STYLE = (
    "method=style_transfer",
    "method.translator_width=4",
    "method.pretraining_rounds=0",
    "method.translator_rounds=1",
)
DRAI = ("method=drai", "method.generation_rounds=1")


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "method"), [("feddg", STYLE), ("harmofl", DRAI)], ids=["feddg-style", "harmofl-drai"]
)
def test_methods_that_publish_themselves_are_not_disturbed(
    name: str, method: tuple[str, ...], simulate_undrawn: Callable[..., Path], tmp_path: Path
) -> None:
    quiet = ("baselines=[]", "evaluated=[global]", "validate_every=0", "rounds=3")
    run = simulate_undrawn(tmp_path / "run", f"strategy={name}", *method, *quiet)
    for line in lines_of(run):
        assert not line["failed"], line["failed"]
        assert not line["rejected"]
    held = read_tensors(run / "checkpoints" / "round_0003.safetensors")
    published = {key.rpartition("::")[2] for key in held if "vendor_a::" in key}
    assert any(key.startswith("rule.") for key in published)
    assert any(not key.startswith("rule.") for key in published)


def test_every_prediction_of_harmofl_is_harmonised(
    simulate: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    harmonising = Harmonised.at_prediction

    def watched(scene: Scene) -> Callable[..., Any] | None:
        change = harmonising(scene)

        def counted(images: Any) -> Any:
            seen.append(len(images))
            return change and change(images)

        return change and counted

    monkeypatch.setattr(Harmonised, "at_prediction", watched)
    simulate(tmp_path / "run", "strategy=harmofl", "baselines=[]", "evaluated=[global]", "rounds=1")
    # Three sites validate after round 1; four are scored on the test split, and drawn.
    assert len(seen) >= 3 + 4


def test_statistics_of_too_few_images_stay_at_the_site(
    simulate_undrawn: Callable[..., Path], tmp_path: Path
) -> None:
    run = simulate_undrawn(
        tmp_path / "run",
        "strategy=feddg",
        "baselines=[]",
        "evaluated=[global]",
        "policy.min_count=1000",
    )
    for line in lines_of(run):
        assert all(told["statistics_withheld"] == 1 for told in line["sites"].values())
    held = read_tensors(run / "checkpoints" / "round_0002.safetensors")
    assert not any("rule." in key for key in held)
