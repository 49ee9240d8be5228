"""The phantoms: their physics against independent computations, their promises by drawing them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage, stats

from fedshift import UserError
from fedshift.sites import DataSettings, load_federation, open_site, phantoms
from fedshift.sites.example import labels, write_example
from fedshift.sites.phantoms import cardiac, ct, dots, fetal_head, graph, mri, truth, ultrasound
from fedshift.sites.phantoms.acquisition import interpolate
from fedshift.sites.phantoms.fields import smooth_field

ANATOMIES = ("cardiac", "ct", "fetal_head")
# A protocol that changes nothing: what is tested moves one parameter away from it.
IDEAL_MRI = replace(
    cardiac.REFERENCE, resolution_phase=1.0, noise=0.0, saturation=0.0, coil_decay=0.0
)


def scan(
    anatomy: str,
    vendor: str = "vendor_a",
    subject: str = "s0",
    *,
    seed: int = 0,
    shift: float = 1.0,
    size: int = 64,
    slices: int = 4,
    **more: Any,
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    return phantoms.draw(
        anatomy,
        vendor=vendor,
        subject=subject,
        seed=seed,
        shift=shift,
        size=size,
        slices=slices,
        **more,
    )


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_a_draw_has_the_promised_form(anatomy: str) -> None:
    image, label, spacing = scan(anatomy, size=48, slices=3)
    assert image.shape == label.shape == (3, 48, 48)
    assert (image.dtype, label.dtype) == (np.float32, np.uint8)
    assert np.isfinite(image).all() and image.min() >= 0
    assert spacing[1] == spacing[2] and 2.5 < spacing[1] < 7.0 and 5.0 < spacing[0] < 60.0
    assert set(np.unique(label)) == set(range(len(phantoms.parts(anatomy)) + 1))
    assert phantoms.vendors(anatomy) == ("vendor_a", "vendor_b", "vendor_c", "vendor_d")


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_the_same_arguments_give_the_same_bits_and_touch_no_global_generator(anatomy: str) -> None:
    np.random.seed(5)  # noqa: NPY002
    first = scan(anatomy)
    after = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    assert after == np.random.random()  # noqa: NPY002
    again = scan(anatomy)
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()
    assert first[2] == again[2]
    for other in (scan(anatomy, seed=1), scan(anatomy, subject="s1")):
        assert not np.array_equal(first[0], other[0])
        assert not np.array_equal(first[1], other[1])


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_one_subject_scanned_by_two_vendors_is_an_exact_pair(anatomy: str) -> None:
    for subject in ("s0", "s1"):
        a = scan(anatomy, "vendor_a", subject)
        for vendor in ("vendor_b", "vendor_c", "vendor_d"):
            b = scan(anatomy, vendor, subject, shift=0.3)
            assert np.array_equal(a[1], b[1])
            assert a[2] == b[2]
            assert not np.array_equal(a[0], b[0])


def sorted_intensities(anatomy: str, vendor: str, shift: float) -> np.ndarray:
    """Sorted z-scored intensities (subjects, pixels) over the same subjects for every vendor."""
    rows = []
    for subject in range(12):
        image = scan(anatomy, vendor, f"s{subject}", shift=shift, slices=2)[0].ravel()
        rows.append(np.sort((image - image.mean()) / image.std()))
    return np.array(rows)


@pytest.mark.parametrize("anatomy", [*ANATOMIES, "dots"])
def test_vendors_agree_at_shift_0_and_part_as_it_grows(anatomy: str) -> None:
    """Mean Wasserstein-1 distance of paired images after per-image normalisation."""
    for vendor in ("vendor_b", "vendor_c", "vendor_d"):
        distance = []
        for shift in (0.0, 0.5, 1.0):
            a = sorted_intensities(anatomy, "vendor_a", shift)
            b = sorted_intensities(anatomy, vendor, shift)
            distance.append(float(np.abs(a - b).mean()))
        # At shift 0 what is left is the scans' own chance: noise, coil position, gain.
        assert distance[0] < 0.05
        assert distance[2] > 3 * distance[0]
        assert distance[0] < distance[1] < distance[2]


@pytest.mark.parametrize("module", [cardiac, ct, dots, fetal_head, graph])
def test_shift_moves_every_parameter_linearly_between_reference_and_vendor(module: object) -> None:
    reference = module.REFERENCE  # type: ignore[attr-defined]
    for vendor in module.VENDORS.values():  # type: ignore[attr-defined]
        assert interpolate(reference, vendor, 0.0) == reference
        assert interpolate(reference, vendor, 1.0) == vendor
    quarter = interpolate(cardiac.REFERENCE, replace(cardiac.REFERENCE, flip_deg=10.0), 0.25)
    assert quarter == replace(cardiac.REFERENCE, flip_deg=40.0)


def test_every_cardiac_slice_has_a_closed_ring_of_myocardium_between_cavity_and_rv() -> None:
    cross = ndimage.generate_binary_structure(2, 1)
    for subject in range(12):
        _, label, _ = scan("cardiac", subject=f"s{subject}")
        for plane in label:
            cavity, wall, right = (plane == k for k in (1, 2, 3))
            assert cavity.sum() > 10 and wall.sum() > 20 and right.sum() > 5
            assert not (ndimage.binary_dilation(cavity, cross) & ~cavity & ~wall).any()
            # Filling the wall's hole gives back the cavity: the ring is closed.
            assert np.array_equal(ndimage.binary_fill_holes(wall) & ~wall, cavity)
            assert ndimage.label(cavity | wall)[1] == 1


def test_image_and_label_lie_on_the_same_pixel_centres() -> None:
    """The basal cavity, free of papillary muscles, has one centroid in both, to a tenth pixel."""
    offsets = []
    for subject in range(12):
        image, label, _ = scan("cardiac", subject=f"s{subject}", size=128, slices=8)
        cavity, wall = label[0] == 1, label[0] == 2
        half = 0.5 * (np.median(image[0][cavity]) + np.median(image[0][wall]))
        blood = (image[0] > half) & ndimage.binary_dilation(cavity, iterations=2)
        centroids = (ndimage.center_of_mass(plane) for plane in (blood, cavity))
        offsets.append(np.subtract(*centroids))
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.1


def test_cardiac_volumes_are_those_of_a_heart() -> None:
    """The cavity of an adult holds 20 to 250 mL from systole to diastole."""
    volumes = []
    for subject in range(20):
        _, label, spacing = scan("cardiac", subject=f"s{subject}", slices=8)
        volumes.append((label == 1).sum() * np.prod(spacing) / 1000.0)
    assert 20 < min(volumes) < 0.6 * max(volumes) < 150
    assert max(volumes) < 250


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_a_larger_size_draws_the_same_subject_with_finer_pixels(anatomy: str) -> None:
    coarse, fine = scan(anatomy, size=48), scan(anatomy, size=96)
    for k in range(1, len(phantoms.parts(anatomy)) + 1):
        areas = [(label == k).sum() * spacing[1] ** 2 for _, label, spacing in (coarse, fine)]
        assert areas[0] == pytest.approx(areas[1], rel=0.05)


def test_the_head_is_a_filled_ellipse_inside_the_image() -> None:
    for subject in range(12):
        _, label, spacing = scan("fetal_head", subject=f"s{subject}")
        for plane in label.astype(bool):
            assert not (plane[[0, -1]].any() or plane[:, [0, -1]].any())
            rows, columns = np.nonzero(plane)
            axes = np.sqrt(np.linalg.eigvalsh(np.cov(np.stack([rows, columns])))) * 2 * spacing[1]
            # The variance along an ellipse's axis of half-length a is a^2 / 4.
            assert np.pi * np.prod(axes) == pytest.approx(plane.sum() * spacing[1] ** 2, rel=0.03)
            assert 0.70 < axes[0] / axes[1] < 0.88
            assert 38.0 < 2 * axes[0] < 90.0


def test_the_skull_is_brighter_than_what_lies_on_both_sides() -> None:
    for vendor in phantoms.vendors("fetal_head"):
        image, label, _ = scan("fetal_head", vendor, size=128)
        inside = ndimage.distance_transform_edt(label[1])
        ring = image[1][(inside > 0) & (inside < 3)].mean()
        brain = image[1][inside > 6].mean()
        assert ring > 1.3 * brain


def bloch_steady_state(
    t1: float, t2: float, flip_deg: float, tr: float, off_resonance_hz: float
) -> float:
    """|Mxy| at TR / 2 after many pulses of alternating sign, by multiplying matrices."""

    def evolve(m: np.ndarray, ms: float) -> np.ndarray:
        angle = 2e-3 * np.pi * off_resonance_hz * ms
        c, s, e2, e1 = np.cos(angle), np.sin(angle), np.exp(-ms / t2), np.exp(-ms / t1)
        spin = np.array([[e2 * c, e2 * s, 0], [-e2 * s, e2 * c, 0], [0, 0, e1]])
        return spin @ m + np.array([0, 0, 1 - e1])

    m = np.array([0.0, 0.0, 1.0])
    for pulse in range(int(12 * t1 / tr)):
        a = np.deg2rad(flip_deg) * (-1) ** pulse
        c, s = np.cos(a), np.sin(a)
        echo = np.array([[1, 0, 0], [0, c, s], [0, -s, c]]) @ m
        m = evolve(echo, tr)
    return float(np.hypot(*evolve(echo, tr / 2)[:2]))


@pytest.mark.parametrize(
    ("t1", "t2", "flip", "tr", "hz"),
    [
        (1441.0, 290.0, 60.0, 3.2, 0.0),
        (1030.0, 40.0, 20.0, 4.4, 0.0),
        (343.0, 58.0, 50.0, 3.2, -217.0),
        (1000.0, 45.0, 35.0, 4.0, 125.0),
    ],
)
def test_bssfp_signal_is_the_steady_state_of_the_bloch_equations(
    t1: float, t2: float, flip: float, tr: float, hz: float
) -> None:
    signal = mri.bssfp_signal(np.array(t1), np.array(t2), flip, tr, hz)
    assert float(signal) == pytest.approx(bloch_steady_state(t1, t2, flip, tr, hz), rel=1e-4)


def test_bssfp_signal_on_resonance_is_the_textbook_form() -> None:
    e1, e2, a = np.exp(-3.0 / 1000), np.exp(-3.0 / 50), np.deg2rad(45)
    textbook = np.sin(a) * (1 - e1) / (1 - (e1 - e2) * np.cos(a) - e1 * e2) * np.exp(-1.5 / 50)
    signal = mri.bssfp_signal(np.array(1000.0), np.array(50.0), 45.0, 3.0)
    assert float(signal) == pytest.approx(textbook, rel=1e-12)


def test_relaxation_follows_the_field_and_the_contrast_agent() -> None:
    blood = list(cardiac.TISSUES).index("blood")
    at_3t = replace(cardiac.REFERENCE, field_t=3.0)
    assert cardiac.relaxation(cardiac.REFERENCE)[0][blood] == pytest.approx(1441.0)
    assert cardiac.relaxation(at_3t)[0][blood] == pytest.approx(1932.0)
    # 1 / (1 / 1441 + 4.5e-3 x 1) = 192.54 ms
    agent = cardiac.relaxation(replace(cardiac.REFERENCE, contrast_agent_mm=1.0))
    assert agent[0][blood] == pytest.approx(192.54, abs=0.01)


def test_acquire_returns_a_band_limited_object_exactly_at_every_second_sample() -> None:
    size = 33
    rows, columns = np.mgrid[: 2 * size, : 2 * size] * (2 * np.pi / (2 * size))
    wave = 2.0 + np.cos(3 * rows - 5 * columns) + 1j * np.sin(7 * columns)
    image = mri.acquire(np.random.default_rng(0), wave[None], size, IDEAL_MRI)
    assert np.allclose(image[0], np.abs(wave)[::2, ::2], atol=1e-5)


def test_noise_is_rician_and_falls_with_the_sampled_fraction() -> None:
    size, sigma = 128, 0.05
    rng = np.random.default_rng(3)
    for amplitude in (0.0, 0.1, 0.5):
        flat = np.full((2, 2 * size, 2 * size), amplitude, np.complex64)
        image = mri.acquire(rng, flat, size, replace(IDEAL_MRI, noise=sigma))
        theory = stats.rice(amplitude / sigma, scale=sigma)
        assert image.mean() == pytest.approx(theory.mean(), rel=0.01)
        assert image.std() == pytest.approx(theory.std(), rel=0.02)
    half = replace(IDEAL_MRI, noise=sigma, resolution_phase=0.5)
    image = mri.acquire(rng, np.zeros((2, 2 * size, 2 * size), np.complex64), size, half)
    kept = mri.sampled_rows(size, 0.5, 1.0).mean()
    assert image.mean() == pytest.approx(sigma * np.sqrt(kept * np.pi / 2), rel=0.02)


def test_sampled_rows_are_the_centre_and_the_positive_side() -> None:
    # Rows of an unshifted k-space of 8: frequencies 0 1 2 3 -4 -3 -2 -1.
    assert mri.sampled_rows(8, 1.0, 1.0).all()
    assert mri.sampled_rows(8, 0.5, 1.0).tolist() == [1, 1, 1, 0, 0, 0, 1, 1]
    assert mri.sampled_rows(8, 1.0, 0.625).tolist() == [1, 1, 1, 1, 0, 0, 0, 1]
    assert mri.sampled_rows(200, 1.0, 0.7).mean() == pytest.approx(0.7, abs=0.01)


def test_truncated_k_space_blurs_an_edge_along_its_own_axis_only() -> None:
    size = 64
    square = np.zeros((1, 2 * size, 2 * size), np.complex64)
    square[:, 40:88, 40:88] = 1.0
    low = replace(IDEAL_MRI, resolution_phase=0.3)
    sharp, blurred = (
        mri.acquire(np.random.default_rng(0), square, size, p)[0] for p in (IDEAL_MRI, low)
    )
    across_rows, across_columns = (
        [np.abs(np.diff(image, axis=axis)).max() for image in (sharp, blurred)] for axis in (0, 1)
    )
    assert across_rows[1] < 0.6 * across_rows[0]
    assert across_columns[1] > 0.85 * across_columns[0]


def test_coil_sensitivity_falls_by_its_decay() -> None:
    x, y = np.array([0.0, 30.0]), np.array([0.0, 40.0])
    assert np.allclose(mri.coil_sensitivity(x, y, (0.0, 0.0), 2.0), [1.0, np.exp(-1.0)])


def test_render_clips_the_stated_fraction_and_bends_the_rest() -> None:
    ramp = np.arange(1.0, 1001.0)
    image = mri.render(ramp, replace(IDEAL_MRI, saturation=0.1, gamma=2.0), gain=500.0)
    assert (image == image.max()).mean() == pytest.approx(0.1, abs=0.002)
    assert image.max() == pytest.approx(500.0)
    assert image[449] == pytest.approx(500.0 * (450 / 900.1) ** 2, rel=1e-3)


def test_beam_is_narrowest_near_its_focus_and_has_the_stated_width() -> None:
    protocol = replace(fetal_head.REFERENCE, focus_mm=60.0, aperture_mm=20.0, cycles=2.0)
    step, beams = 1.0, 301
    spread = ultrasound.point_spread(step, np.full(120, 0.2), beams, protocol)
    measured = []
    for depth in (20, 60, 100):
        point = np.zeros((1, 120, beams), np.complex64)
        point[0, depth, 150] = 1.0
        profile = np.abs(ultrasound.blur(point, spread)[0, depth])
        offset = (np.arange(beams) - 150) * 0.2
        measured.append(float(np.sqrt((profile * offset**2).sum() / profile.sum())))
    # FWHM at the focus: wavelength 1.54 / 3.5 mm x 60 / 20 = 1.32 mm, sigma 0.5605 mm. At 20 mm:
    # hypot(0.44, 0.25 x 20 x 2 / 3) = 3.3622 mm, sigma 1.4278 mm.
    assert measured[1] == pytest.approx(0.5605, rel=0.01)
    assert measured[0] == pytest.approx(1.4278, rel=0.01)
    assert measured[1] < measured[2]


def test_blur_keeps_the_mean_intensity_of_speckle_and_makes_its_envelope_rayleigh() -> None:
    rng = np.random.default_rng(1)
    noise = (rng.standard_normal((4, 128, 256)) + 1j * rng.standard_normal((4, 128, 256))) / 2**0.5
    spread = ultrasound.point_spread(1.0, np.linspace(0.5, 1.5, 128), 256, fetal_head.REFERENCE)
    envelope = np.abs(ultrasound.blur(noise, spread))
    assert (envelope**2).mean() == pytest.approx(1.0, rel=0.02)
    # A Rayleigh envelope has mean / standard deviation 1.913.
    assert envelope.mean() / envelope.std() == pytest.approx(1.913, rel=0.02)


def test_mirror_gain_is_what_blurring_does_to_a_constant() -> None:
    spread = ultrasound.point_spread(1.0, np.linspace(0.5, 1.5, 64), 96, fetal_head.REFERENCE)
    blurred = ultrasound.blur(np.ones((1, 64, 96), np.complex64), spread)
    assert np.allclose(blurred[0], spread.mirror_gain[:, None], rtol=1e-4)


def test_full_time_gain_compensation_cancels_the_loss_of_soft_tissue() -> None:
    protocol = replace(fetal_head.REFERENCE, tgc=1.0, frequency_mhz=4.0)
    depth = np.arange(100) * 0.5
    loss = ultrasound.round_trip_loss_db(np.full((1, 100, 1), 0.5), 0.5, protocol)
    gain = ultrasound.gain_compensation_db(depth, protocol, 0.5)
    assert np.allclose(loss[0, :, 0], gain)
    # 0.5 dB / (cm MHz) x 4 MHz x 2 ways x 4.95 cm = 19.8 dB.
    assert gain[-1] == pytest.approx(19.8)


def test_an_attenuator_shadows_what_lies_behind_it_and_nothing_else() -> None:
    attenuation = np.zeros((1, 6, 2))
    attenuation[0, 2, 1] = 5.0
    loss = ultrasound.round_trip_loss_db(attenuation, 2.0, fetal_head.REFERENCE)
    assert not loss[0, :, 0].any() and not loss[0, :3, 1].any()
    # 5 dB / (cm MHz) x 3.5 MHz x 2 ways x 0.2 cm = 7 dB.
    assert np.allclose(loss[0, 3:, 1], 7.0)


def test_log_compression_maps_the_dynamic_range_to_0_and_1() -> None:
    protocol = replace(fetal_head.REFERENCE, gain_db=0.0, dynamic_range_db=60.0, gamma=1.0)
    envelope = 10.0 ** (np.array([6.0, 0.0, -30.0, -60.0, -90.0]) / 20.0)
    assert np.allclose(ultrasound.compress(envelope, protocol), [1.0, 1.0, 0.5, 0.0, 0.0])
    louder = replace(protocol, gain_db=15.0, gamma=2.0)
    assert np.allclose(ultrasound.compress(envelope, louder)[2], 0.75**2)


def test_scan_conversion_keeps_a_constant_and_is_black_outside_the_fan() -> None:
    rows, columns = np.meshgrid(np.linspace(-4, 12, 16), np.linspace(0, 7, 16), indexing="ij")
    image = ultrasound.scan_convert(np.full((1, 13, 8), 0.6), rows, columns, smoothing=0.0)
    assert image.shape == (1, 8, 8)
    assert np.allclose(image[0, 2:], 0.6)
    assert not image[0, 0].any()


def test_smooth_field_has_unit_variance_and_does_not_depend_on_the_grid() -> None:
    fields = [
        smooth_field(np.random.default_rng(2), 20, (side, side), cells=16) for side in (64, 128)
    ]
    assert fields[0].std() == pytest.approx(1.0, abs=0.05)
    assert np.allclose(fields[0], fields[1][:, ::2, ::2], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"anatomy": "knee"}, "cardiac, ct, dots, fetal_head, graph"),
        ({"vendor": "vendor_x"}, "vendor_a, vendor_b, vendor_c, vendor_d"),
        ({"shift": 1.5}, "shift=1.5"),
        ({"shift": float("nan")}, "shift=nan"),
        ({"size": 16}, "size=16"),
        ({"slices": 0}, "slices=0"),
    ],
)
def test_bad_arguments_are_refused_with_the_way_out(change: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        scan(**{"anatomy": "cardiac", **change})  # type: ignore[arg-type]
    if "anatomy" in change:
        for call in (phantoms.parts, phantoms.vendors):
            with pytest.raises(UserError, match=says):
                call(str(change["anatomy"]))


def train_and_score(home: str, away: str, shift: float) -> tuple[float, float]:
    """Mean Dice at ``home`` and ``away`` of a small U-Net trained at ``home``."""
    torch = pytest.importorskip("torch")
    nn, functional = torch.nn, torch.nn.functional

    def block(inputs: int, outputs: int) -> Any:
        layers: list[Any] = []
        for channels in (inputs, outputs):
            layers += [
                nn.Conv2d(channels, outputs, 3, padding=1),
                nn.InstanceNorm2d(outputs, affine=True),
                nn.LeakyReLU(),
            ]
        return nn.Sequential(*layers)

    def load(vendor: str, group: str, subjects: int) -> tuple[Any, Any]:
        images, labels = [], []
        for subject in range(subjects):
            image, label, _ = scan("cardiac", vendor, f"{vendor} {group} {subject}", shift=shift)
            images.append((image - image.mean()) / image.std())
            labels.append(label)
        return torch.tensor(np.stack(images)), torch.tensor(np.stack(labels)).long()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        down = nn.ModuleList([block(1, 12), block(12, 24), block(24, 48)])
        up = nn.ModuleList([block(48 + 24, 24), block(24 + 12, 12)])
        head = nn.Conv2d(12, 4, 1)

    def network(x: Any) -> Any:
        fine = down[0](x)
        middle = down[1](functional.max_pool2d(fine, 2))
        y = down[2](functional.max_pool2d(middle, 2))
        for layer, skip in zip(up, (middle, fine), strict=True):
            y = layer(torch.cat([functional.interpolate(y, scale_factor=2), skip], 1))
        return head(y)

    images, labels = (part.flatten(0, 1) for part in load(home, "train", 24))
    parameters = [*down.parameters(), *up.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(parameters, 2e-3)
    rng = np.random.default_rng(1)
    for _ in range(200):
        batch = torch.from_numpy(rng.integers(len(images), size=12))
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        x, y = (torch.rot90(part[batch], turns, (1, 2)) for part in (images, labels))
        x, y = (part.flip(2) if flip else part for part in (x, y))
        logits = network(x[:, None])
        chance, truth = logits.softmax(1), functional.one_hot(y, 4).movedim(-1, 1)
        overlap = 2 * (chance * truth).sum((0, 2, 3)) / (chance + truth).sum((0, 2, 3))
        loss = functional.cross_entropy(logits, y) + 1 - overlap[1:].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    scores = []
    for vendor in (home, away):
        dice = []
        for image, label in zip(*load(vendor, "test", 12), strict=True):
            with torch.no_grad():
                found = network(image[:, None]).argmax(1)
            for k in (1, 2, 3):
                a, b = found == k, label == k
                dice.append(2 * int((a & b).sum()) / int(a.sum() + b.sum()))
        scores.append(float(np.mean(dice)))
    return scores[0], scores[1]


@pytest.mark.slow
def test_a_network_of_one_vendor_fails_at_another_at_full_shift_and_not_without() -> None:
    home, away = train_and_score("vendor_c", "vendor_a", shift=1.0)
    assert home > 0.85
    assert away < 0.6
    home, away = train_and_score("vendor_c", "vendor_a", shift=0.0)
    assert home > 0.85
    assert abs(home - away) < 0.03


# What makes a site unlike others besides its scanner.


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_a_convention_moves_the_outline_in_or_out_and_leaves_the_image(anatomy: str) -> None:
    image, label, spacing = scan(anatomy)
    half = spacing[1] / 2
    for outline in (-1.0, -0.6, 0.6, 1.0):
        same, moved, _ = scan(anatomy, outline=outline)
        assert np.array_equal(same, image)
        for plane, before in zip(moved > 0, label > 0, strict=True):
            outside = ndimage.distance_transform_edt(~before) * spacing[1] - half
            inside = ndimage.distance_transform_edt(before) * spacing[1] - half
            reach = phantoms.OUTLINE_MM * abs(outline)
            expected = outside <= reach if outline > 0 else inside > reach
            assert np.array_equal(plane, expected | before if outline > 0 else expected & before)
        # What stays labelled keeps its structure; what is new takes a neighbour's.
        both = (moved > 0) & (label > 0)
        assert np.array_equal(moved[both], label[both])
        assert set(np.unique(moved)) <= set(np.unique(label))
    assert np.array_equal(scan(anatomy, outline=0.0)[1], label)


def test_a_slice_without_a_structure_has_no_outline_to_move() -> None:
    empty = np.zeros((1, 8, 8), np.uint8)
    assert not truth.outlined(empty, 5.0, (1.0, 1.0)).any()


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_a_faulty_site_delivers_noise_or_the_labels_of_others(anatomy: str) -> None:
    image, label, _ = scan(anatomy)
    noise, kept, _ = scan(anatomy, fault="noise")
    assert np.array_equal(kept, label)
    # Nothing of the subject is left, at about the same brightness (a Rayleigh mean is 1.25 scale).
    assert abs(np.corrcoef(noise.ravel(), image.ravel())[0, 1]) < 0.05
    assert noise.dtype == np.float32
    assert noise.mean() == pytest.approx(1.2533 * image.mean(), rel=0.03)
    seen, other, _ = scan(anatomy, fault="labels")
    assert np.array_equal(seen, image)
    assert other.any() and not np.array_equal(other, label)
    with pytest.raises(UserError, match="fault=broken"):
        scan(anatomy, fault="broken")
    with pytest.raises(UserError, match="outline=2"):
        scan(anatomy, outline=2.0)


def federation(**changed: Any) -> dict[str, Any]:
    node = {"kind": "phantom", "anatomy": "cardiac", "shift": 1.0, "unseen": []}
    sites = {name: [name] for name in phantoms.vendors("cardiac")}
    return {**node, "sites": sites, "subjects": 2, "slices": 2, "size": 32, **changed}


def recipes(**changed: Any) -> dict[str, list[dict[str, Any]]]:
    found = load_federation(federation(**changed), DataSettings(), seed=0)
    return {site.name: [dict(image.phantom or {}) for image in site.images] for site in found.sites}


def test_conventions_spread_evenly_over_the_sites_and_copies_share_theirs() -> None:
    found = recipes(structure_shift=0.5, sites_per_vendor=2)
    outlines = {name: {recipe["outline"] for recipe in images} for name, images in found.items()}
    for letter, expected in zip("abcd", (-0.5, -1 / 6, 1 / 6, 0.5), strict=True):
        for copy in (1, 2):
            (outline,) = outlines[f"vendor_{letter}_00{copy}"]
            assert outline == pytest.approx(expected)
    alone = recipes(structure_shift=1.0, sites={"x": ["vendor_a"]})
    assert {recipe["outline"] for recipe in alone["x"]} == {0.0}
    assert {recipe["outline"] for images in recipes().values() for recipe in images} == {0.0}


def test_sites_may_differ_in_their_number_of_subjects() -> None:
    counts = {"vendor_a": 5, "vendor_b": 1, "vendor_c": 2, "vendor_d": 3}
    assert {name: len(images) for name, images in recipes(subjects=counts).items()} == counts


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"structure_shift": 1.5}, "federation.structure_shift"),
        ({"structure_shift": True}, "federation.structure_shift"),
        ({"faulty_sites": {"vendor_x": "noise"}}, "no site 'vendor_x'"),
        ({"faulty_sites": {"vendor_a": "odd"}}, "federation.faulty_sites.vendor_a"),
        ({"faulty_sites": ["vendor_a"]}, "federation.faulty_sites"),
        ({"subjects": {"vendor_a": 2}}, "no number for the site vendor_b"),
        ({"subjects": {"vendor_x": 2}}, "no site 'vendor_x'"),
        ({"subjects": 0}, "federation.subjects"),
    ],
)
def test_what_a_phantom_federation_cannot_be_is_named(changed: Any, named: str) -> None:
    with pytest.raises(UserError, match=named):
        recipes(**changed)


def test_faults_are_of_single_sites() -> None:
    found = recipes(faulty_sites={"vendor_b_002": "labels"}, sites_per_vendor=2)
    faults = {name: {recipe["fault"] for recipe in images} for name, images in found.items()}
    assert faults.pop("vendor_b_002") == {"labels"}
    assert set().union(*faults.values()) == {""}


def test_an_example_is_the_phantom_as_files(tmp_path: Path) -> None:
    """Read back, oriented and split as any images are, it is what was drawn."""
    data = DataSettings.from_config(
        {
            "manifest": str(tmp_path / "MANIFEST.tsv"),
            "normalise": "none",
            "size": 32,
            "cache": str(tmp_path / "cache"),
        }
    )
    folders = write_example(tmp_path, sites=2, subjects=3, slices=2, size=32)
    federation = load_federation({"kind": "manifest"}, data, 0)
    assert [site.name for site in federation.sites] == [*folders] == ["hospital-1", "hospital-2"]
    assert [*federation.parts] == [*labels()]
    opened = open_site(federation.site("hospital-2"), federation.parts, data, 0)
    cases = [case for cases in opened.splits.values() for case in cases]
    assert len(cases) == 3
    for case in cases:
        image, label, spacing = phantoms.draw(
            "cardiac",
            vendor="vendor_b",
            subject=case.subject,
            seed=0,
            shift=1.0,
            size=32,
            slices=2,
        )
        assert (case.image[:, 0] == image).all()
        assert (case.labels["mask"].grid == label).all()
        assert case.native_spacing_mm == pytest.approx(spacing, abs=1e-4)
    with pytest.raises(UserError, match="is there already; name another folder"):
        write_example(tmp_path)
