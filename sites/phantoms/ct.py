"""Chest CT with low-contrast lesions: a chest in millimetres, one sinogram a subject, and four
vendors that reconstruct it with their own convolution kernels.

Coordinates: x runs along the columns (to the patient's left), y along the rows (to the back), both
in millimetres from the axis of rotation, which is pixel ``size // 2``; t runs from the apex of the
lungs (0) to their base (1).

The kernels are of the family of Saparov et al. (DART 2021, section 2.1). Noise is that of
counting photons in the sinogram, and belongs to the subject: scans of one subject by two vendors
come from the same sinogram, as the paper's pairs do, and differ in the kernel alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fedshift.sites.phantoms.acquisition import Scan
from fedshift.sites.phantoms.fields import smooth_field

STRUCTURES = ("lesion",)
PARTS = {
    "mask": STRUCTURES,
    "boxes": STRUCTURES,
    "instances": STRUCTURES,
    "category": ("no lesion", "lesion"),
    "image": (),
}
"""What the labels of each form tell apart."""
FIELD_OF_VIEW_MM = 320.0
WATER_PER_MM = 0.0195
"""Attenuation of water at about 70 keV, the effective energy of a beam at 120 kV."""
_STACK = (0.2, 0.9)
"""The part of the lungs' height, in t, that the stack of slices covers."""
_LUNG_HEIGHT_MM = 220.0
_BLUR_PIXELS = 0.6
"""Standard deviation of the blur of focal spot and detector."""
_LOG_PHOTONS = (4.8, 5.1)
"""Photons a ray before the patient, as a power of ten: the dose differs between subjects."""


@dataclass(frozen=True)
class Kernel:
    """A vendor's convolution kernel: the filter ``r (1 + a r**b)``, r the ramp from 0 to 1."""

    a: float
    """Above 0 it sharpens; from -1 to 0 it smooths."""
    b: float
    """The larger, the more of the change is left to the highest frequencies."""


REFERENCE = Kernel(0.0, 1.0)
"""The plain ramp: the kernel that all vendors share at shift 0."""

VENDORS = {
    # Soft tissue: noise and detail smoothed away.
    "vendor_a": Kernel(-0.95, 0.7),
    # Standard: a little smoother than the ramp.
    "vendor_b": Kernel(-0.5, 1.0),
    # Sharp, for lungs and bone: the highest frequencies raised up to elevenfold.
    "vendor_c": Kernel(10.0, 3.0),
    # Enhanced edges: the middle frequencies raised, too.
    "vendor_d": Kernel(5.0, 1.5),
}
PAIR = Kernel(2.0, 1.0)
"""Of every subject's paired image, alike at all sites: sharper than the ramp at all frequencies."""

# Hounsfield units; ribs and vertebrae are cortical and spongy bone averaged.
_AIR, _LUNG, _FAT, _MUSCLE, _BLOOD, _SPINE, _RIB = -1000.0, -850.0, -100.0, 50.0, 45.0, 250.0, 500.0


def _ellipse(
    x: np.ndarray,
    y: np.ndarray,
    centre: tuple[np.ndarray | float, np.ndarray | float],
    axes: tuple[np.ndarray | float, np.ndarray | float],
) -> np.ndarray:
    """Normalised radius: below 1 inside the ellipse."""
    return np.hypot((x - centre[0]) / axes[0], (y - centre[1]) / axes[1])


def anatomy(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, slices: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw a chest on the points ``x``, ``y`` (H, W), in mm.

    Returns Hounsfield units (S, H, W) float32, the lesions (S, H, W) bool, of which the middle
    slice always has one, and the distance of the slices in mm.
    """

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    span = (_STACK[1] - _STACK[0]) / slices
    t = (_STACK[0] + span * (np.arange(slices, dtype=np.float32) + 0.5))[:, None, None]
    hu = np.full((slices, *x.shape), _AIR, np.float32)

    # The chest wall: fat, muscle, and ribs that come and go as the slices cross them.
    body_axes = between(140, 154), between(98, 112)
    fat_mm, wall_mm = between(6, 18), between(12, 16)
    radius = _ellipse(x, y, (between(-4, 4), between(-4, 4)), body_axes)
    depth = (1.0 - radius) * body_axes[1]
    np.copyto(hu, _FAT, where=depth > 0)
    np.copyto(hu, _MUSCLE, where=depth > fat_mm)
    around = np.arctan2(y, x)
    rib = np.cos(round(between(11, 15)) * around + between(0, 6.3) + 9.0 * t) > -0.1
    np.copyto(hu, _RIB, where=rib & (np.abs(depth - fat_mm - 0.5 * wall_mm) < 0.25 * wall_mm))

    # The lungs widen towards the base; what lies between them belongs to the mediastinum.
    grown = 1.0 - between(0.3, 0.4) * (1.0 - t) ** 2
    lung_axes = between(50, 56) * grown, between(70, 80) * grown
    lung_x = lung_axes[0] + between(8, 14)
    chest = depth > fat_mm + wall_mm
    sides = [_ellipse(x, y, (side * lung_x, between(-8, 4)), lung_axes) for side in (-1.0, 1.0)]
    lungs = ((sides[0] < 1) | (sides[1] < 1)) & chest
    np.copyto(hu, _FAT, where=chest & ~lungs)
    spine = between(-4, 4), between(62, 72)
    np.copyto(hu, _SPINE, where=chest & (_ellipse(x, y, spine, (22.0, 19.0)) < 1))
    aorta = _ellipse(x, y, (spine[0] + between(20, 26), spine[1] - between(14, 20)), (12.0, 12.0))
    heart_axes = between(44, 56) * np.sqrt(t), between(38, 48) * np.sqrt(t)
    heart = _ellipse(x, y, (between(16, 28), between(-34, -22)), heart_axes)
    solid = (aorta < 1) | ((heart < 1) & chest & (t > 0.35))
    np.copyto(hu, _BLOOD, where=solid)
    np.copyto(hu, _AIR, where=_ellipse(x, y, (between(-4, 4), between(8, 16)), (9.0, 9.0)) < 1)
    lungs &= ~solid

    # Parenchyma and its vessels, then the lesions: ground glass, some with a denser core.
    shape = x.shape
    tissue = _LUNG + between(-25, 25) + 30.0 * smooth_field(rng, slices, shape, cells=24)
    np.copyto(hu, tissue, where=lungs)
    vessels = smooth_field(rng, slices, shape, cells=40)
    np.copyto(hu, _BLOOD, where=lungs & (vessels > 1.9))
    rough = smooth_field(rng, slices, shape, cells=20)
    lesions = np.zeros_like(lungs)
    count = int(rng.integers(2, 5))
    for number in range(count):
        # The first lies in the middle slice, on the side without the heart.
        side = 0 if number == 0 else int(rng.integers(2))
        level = t[slices // 2, 0, 0] if number == 0 else between(*_STACK)
        place, angle = 0.75 * math.sqrt(between(0, 1)), between(0, 2 * math.pi)
        centre = (
            (2 * side - 1) * lung_x + place * math.cos(angle) * lung_axes[0],
            place * math.sin(angle) * lung_axes[1],
        )
        size_mm = between(14, 32)
        height = (t - level) * _LUNG_HEIGHT_MM / (2.0 * size_mm)
        outline = np.sqrt(
            _ellipse(x, y, centre, (size_mm, size_mm * between(0.6, 1.0))) ** 2 + height**2
        )
        outline += 0.12 * rough
        here = lungs & (outline < 1)
        dense = between(-620, -420)
        core = between(-250, 0) if between(0, 1) < 0.3 else dense
        filled = np.where(outline < 0.5, core, dense) + 30.0 * rough
        np.copyto(hu, np.maximum(filled, hu), where=here)
        lesions |= here
    return hu, lesions, span * _LUNG_HEIGHT_MM


def draw(
    subject_rng: np.random.Generator,
    _scan_rng: np.random.Generator,
    kernel: Kernel,
    *,
    size: int,
    slices: int,
) -> Scan:
    """Draw a subject and its sinogram from ``subject_rng`` and reconstruct it; see the package's
    draw. Nothing is drawn for the scan. Pixels are attenuation relative to water's: 0 in
    air, 1 in water, 4.095 at most, where scanners' twelve bits end."""
    import torch

    from fedshift.sites.tomography import tomograph

    pixel_mm = FIELD_OF_VIEW_MM / size
    # The object is known on half pixels, every second of which is a pixel's centre.
    fine = 2 * size - size % 2
    half = (np.arange(fine, dtype=np.float32) - fine // 2) * np.float32(pixel_mm / 2)
    x, y = np.meshgrid(half, half)
    hu, lesions, slice_mm = anatomy(subject_rng, x, y, slices)

    sharp = ndimage.gaussian_filter(hu / 1000.0 + 1.0, (0.0, *[2.0 * _BLUR_PIXELS] * 2))
    attenuation = torch.from_numpy(np.ascontiguousarray(sharp[:, ::2, ::2]))
    scanner = tomograph(size, 3 * size // 2, torch.device("cpu"))
    pixels = scanner.project(attenuation).numpy().astype(np.float64)
    per_pixel = WATER_PER_MM * pixel_mm
    photons = 10.0 ** subject_rng.uniform(*_LOG_PHOTONS)
    counts = subject_rng.poisson(photons * np.exp(-per_pixel * pixels))
    measured = np.log(photons / np.maximum(counts, 1)) / per_pixel
    sinogram = torch.from_numpy(measured.astype(np.float32))
    water = scanner.reconstruct(sinogram, kernel.a, kernel.b).numpy()
    image = np.clip(water, 0.0, 4.095)
    label = lesions[:, ::2, ::2].astype(np.uint8)
    labels = {"mask": label, "category": np.where(label.any(axis=(1, 2)), 2, 1).astype(np.uint8)}
    return Scan(image, labels, (slice_mm, pixel_mm, pixel_mm))
