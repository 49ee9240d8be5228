"""The CT phantom: its units and noise against physics, its kernels as the only vendor shift."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fedshift.sites import phantoms
from fedshift.sites.phantoms import ct
from fedshift.sites.tomography import inside_circle

VENDORS = ("vendor_a", "vendor_b", "vendor_c", "vendor_d")


def scan(
    vendor: str, subject: str = "s0", *, shift: float = 1.0, size: int = 64, slices: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    return phantoms.draw(
        "ct", vendor=vendor, subject=subject, seed=0, shift=shift, size=size, slices=slices
    )[:2]


def high_frequencies(image: np.ndarray) -> float:
    """The power above half the Nyquist frequency."""
    frequency = np.fft.fftfreq(image.shape[-1])
    above = np.hypot(frequency[:, None], frequency) > 0.25
    return float((np.abs(np.fft.fft2(image)) ** 2)[:, above].sum())


def test_pixels_are_attenuation_relative_to_water() -> None:
    """The heart is blood, 1.045; air around the patient is 0, and nothing lies beyond 12 bits."""
    air, blood = [], []
    for subject in range(6):
        image, _ = scan("vendor_b", f"s{subject}", size=128, slices=4)
        air.append(np.median(image[:, :8, 60:68]))
        blood.append(np.median(image[3, 46:56, 72:80]))
        assert image.min() >= 0 and image.max() <= 4.095
        assert not image[:, ~inside_circle(128)].any()
    assert max(air) < 0.02
    assert np.mean(blood) == pytest.approx(1.045, abs=0.02)


def test_every_subject_has_a_lesion_in_its_middle_slice_darker_than_the_heart() -> None:
    for subject in range(20):
        image, label = scan("vendor_b", f"s{subject}")
        lesion = label[2] == 1
        assert 4 < lesion.sum() < 0.1 * lesion.size
        assert 0.2 < image[2][lesion].mean() < 1.0


def test_without_a_shift_all_vendors_give_the_same_bits() -> None:
    """One sinogram, noise included: nothing but the kernel tells a pair apart."""
    images = [scan(vendor, shift=0.0)[0] for vendor in VENDORS]
    assert all(np.array_equal(images[0], image) for image in images[1:])


def test_kernels_order_the_vendors_by_their_high_frequencies() -> None:
    for subject in ("s0", "s1", "s2"):
        soft, standard, sharp, edge = (
            high_frequencies(scan(vendor, subject)[0]) for vendor in VENDORS
        )
        assert 2 * soft < standard < 0.2 * edge
        assert standard < 0.2 * sharp


def test_noise_in_the_image_is_that_of_the_photons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the photons halve the noise, whose size is that of counting.

    Detector noise of variance v has after the ramp v / 3 (the mean of r**2) and a correlation of
    -6 / pi**2 between neighbours, so that interpolating linearly at a random place leaves
    2/3 - 2 / pi**2 of it. The sum over n angles times pi / (2 n) gives v pi**2 / (4 n) of that.
    """
    size = 96
    offset = np.arange(2 * size) - size
    water = np.hypot(offset[:, None], offset) * ct.FIELD_OF_VIEW_MM / size / 2 < 100.0

    def bowl(rng: object, x: np.ndarray, y: np.ndarray, slices: int) -> tuple[np.ndarray, ...]:
        hu = np.where(water, 0.0, -1000.0).astype(np.float32)
        return np.repeat(hu[None], slices, 0), np.repeat(water[None], slices, 0), 1.0

    monkeypatch.setattr(ct, "anatomy", bowl)
    spreads = []
    for exponent in (5.0, 5.0 + np.log10(4.0)):
        monkeypatch.setattr(ct, "_LOG_PHOTONS", (exponent, exponent))
        image, _ = scan("vendor_b", shift=0.0, size=size, slices=12)
        middle = np.hypot(*(np.mgrid[:size, :size] - size // 2)) < 8
        spreads.append(np.sqrt(image[:, middle].var(0, ddof=1).mean()))
    assert spreads[0] == pytest.approx(2 * spreads[1], rel=0.08)
    # Rays through the axis cross 200 mm of water.
    per_pixel = ct.WATER_PER_MM * ct.FIELD_OF_VIEW_MM / size
    ray = np.exp(0.5 * 200 * ct.WATER_PER_MM) / np.sqrt(1e5) / per_pixel
    interpolated = 2 / 3 - 2 / np.pi**2
    expected = ray * np.sqrt(np.pi**2 / (4 * 3 * size // 2) * interpolated / 3)
    assert spreads[0] == pytest.approx(expected, rel=0.05)


def test_listing_the_phantoms_does_not_wait_for_torch() -> None:
    code = "import sys, fedshift.sites.phantoms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
