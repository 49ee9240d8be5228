"""Short-axis cardiac cine MRI: a chest in millimetres, and four vendors that scan it.

Coordinates: x runs along the columns (to the patient's left), y along the rows (to the back),
both in millimetres from the image centre; t runs from the valve plane (0) to the apex (1).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fedshift.sites.phantoms.acquisition import Scan
from fedshift.sites.phantoms.fields import smooth_field
from fedshift.sites.phantoms.heart import Heart, draw_heart
from fedshift.sites.phantoms.mri import (
    FAT_SHIFT_PPM,
    PROTON_MHZ_PER_TESLA,
    MriProtocol,
    acquire,
    bssfp_signal,
    coil_sensitivity,
    render,
)
from fedshift.sites.phantoms.truth import numbered

STRUCTURES = ("LV cavity", "myocardium", "RV cavity")
PARTS = {
    "mask": STRUCTURES,
    "boxes": STRUCTURES,
    "landmarks": ("LV centre", "anterior insertion", "inferior insertion"),
    "category": ("diastole", "systole"),
    "image": (),
}
"""What the labels of each form tell apart. The insertions are the right ventricle's."""
FIELD_OF_VIEW_MM = 160.0
_STACK = (0.08, 0.86)
"""The part of the long axis, in t, that the stack of slices covers."""


class Tissue(NamedTuple):
    """Relaxation at 1.5 T and 3 T (ms), proton density, texture, and uptake of contrast agent."""

    t1_ms: tuple[float, float]
    t2_ms: tuple[float, float]
    density: float
    texture: float = 0.05
    uptake: float = 0.0


# Relaxation times after Stanisz et al., Magn Reson Med 54:507, 2005 (blood, heart, muscle, liver)
# and de Bazelaire et al., Radiology 230:652, 2004 (fat, marrow); lung and fluid are estimates.
TISSUES = {
    "air": Tissue((1000.0, 1000.0), (50.0, 50.0), 0.0),
    "lung": Tissue((1200.0, 1400.0), (40.0, 35.0), 0.12, 0.30),
    "fat": Tissue((343.0, 382.0), (58.0, 68.0), 0.95, 0.06),
    "muscle": Tissue((1008.0, 1412.0), (44.0, 50.0), 0.80, 0.08, 0.15),
    "bone": Tissue((549.0, 586.0), (49.0, 49.0), 0.45, 0.15),
    "liver": Tissue((576.0, 812.0), (46.0, 42.0), 0.75, 0.06, 0.40),
    "fluid": Tissue((2500.0, 2800.0), (600.0, 500.0), 1.00, 0.10),
    "myocardium": Tissue((1030.0, 1471.0), (40.0, 47.0), 0.80, 0.05, 0.45),
    "blood": Tissue((1441.0, 1932.0), (290.0, 275.0), 0.95, 0.04, 1.00),
}
_INDEX = {name: index for index, name in enumerate(TISSUES)}
_RELAXIVITY = 4.5e-3
"""Of a gadolinium chelate, per ms and mmol/L; r1 and r2 are taken as equal."""

REFERENCE = MriProtocol(
    field_t=1.5,
    flip_deg=50.0,
    tr_ms=3.2,
    contrast_agent_mm=0.0,
    fat_suppression=0.0,
    inhomogeneity_ppm=0.2,
    coil_decay=0.5,
    resolution_read=1.0,
    resolution_phase=0.85,
    partial_fourier=1.0,
    noise=0.008,
    saturation=0.01,
    gamma=1.0,
)
"""The protocol that all vendors share at shift 0."""

VENDORS = {
    # 1.5 T, high flip angle, so short a TR that fat falls near the dark band; little noise.
    "vendor_a": MriProtocol(1.5, 65.0, 2.7, 0.0, 0.0, 0.1, 0.3, 1.0, 0.95, 1.0, 0.005, 0.005, 1.2),
    # 3 T, flip angle held down by heating, uncorrected surface coil, dark fat.
    "vendor_b": MriProtocol(3.0, 35.0, 3.4, 0.0, 0.3, 0.4, 1.6, 1.0, 0.85, 0.8, 0.012, 0.01, 0.9),
    # An old 1.5 T scanner: low flip angle, long TR (bright fat), few phase lines, noise, a
    # bright curve.
    "vendor_c": MriProtocol(1.5, 20.0, 4.4, 0.0, 0.0, 0.4, 1.0, 0.8, 0.6, 0.7, 0.014, 0.04, 0.6),
    # 3 T after gadolinium, fat suppressed, a dark curve.
    "vendor_d": MriProtocol(3.0, 40.0, 3.0, 1.2, 0.9, 0.3, 1.2, 1.0, 0.8, 1.0, 0.012, 0.0, 1.4),
}

PAIR = MriProtocol(3.0, 50.0, 2.8, 2.0, 1.0, 0.1, 0.3, 1.0, 1.0, 1.0, 0.004, 0.0, 1.0)
"""Of every subject's paired image, alike at all sites: late after gadolinium, fat suppressed."""


def _ellipse(
    x: np.ndarray, y: np.ndarray, centre: tuple[float, float], axes: tuple[float, float]
) -> np.ndarray:
    """Normalised radius: below 1 inside the ellipse."""
    return np.hypot((x - centre[0]) / axes[0], (y - centre[1]) / axes[1])


def _paint(tissue: np.ndarray, where: np.ndarray, name: str) -> None:
    np.copyto(tissue, _INDEX[name], where=where)


def anatomy(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, slices: int
) -> tuple[np.ndarray, np.ndarray, Heart, float]:
    """Draw a chest on the points ``x``, ``y`` (H, W), in mm.

    Returns the tissue (S, H, W) uint8 as an index into ``TISSUES``, the label (S, H, W) uint8
    (papillary muscles belong to the cavity), the heart and the distance of the slices in mm.
    """

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    span = (_STACK[1] - _STACK[0]) / slices
    t = (_STACK[0] + span * (np.arange(slices, dtype=np.float32) + 0.5))[:, None, None]
    tissue = np.full((slices, *x.shape), _INDEX["air"], np.uint8)
    label = np.zeros_like(tissue)

    # The chest wall, the lungs and what lies behind the heart: the same in every slice.
    body_y, body_axes = between(36, 50), (between(140, 175), between(105, 118))
    fat_mm, wall_mm = between(5, 16), between(9, 14)
    depth = (1.0 - _ellipse(x, y, (between(-5, 20), body_y), body_axes)) * body_axes[1]
    chest = np.full(x.shape, _INDEX["air"], np.uint8)
    _paint(chest, depth > 0, "fat")
    _paint(chest, depth > fat_mm, "muscle")
    rib = (np.abs(depth - fat_mm - 0.55 * wall_mm) < 0.22 * wall_mm) & (
        np.cos(x / between(4.5, 6.5) + between(0, 6.3)) > -0.2
    )
    _paint(chest, rib, "bone")
    _paint(chest, depth > fat_mm + wall_mm, "lung")
    mediastinum = _ellipse(x, y, (between(-12, 0), between(-5, 5)), (32.0, 62.0))
    _paint(chest, (mediastinum < 1) & (depth > fat_mm + wall_mm), "fat")
    spine_x, spine_y = between(-35, -15), between(84, 92)
    _paint(chest, _ellipse(x, y, (spine_x, spine_y), (24.0, 20.0)) < 1, "bone")
    aorta = (spine_x + between(26, 34), between(60, 72))
    aorta_mm = between(9, 13)
    radius = np.hypot(x - aorta[0], y - aorta[1])
    _paint(chest, radius < aorta_mm + 1.5, "muscle")
    _paint(chest, radius < aorta_mm, "blood")
    tissue[:] = chest

    # The diaphragm rises towards the apex; under it the liver and the stomach.
    dome = between(48, 60) - 16.0 * t + ((x + between(20, 45)) / 11.0) ** 2 * between(0.08, 0.2)
    below = (y > dome) & (depth > fat_mm + wall_mm) & (radius > aorta_mm + 1.5)
    border = between(5, 30)
    _paint(tissue, below, "fat")
    _paint(tissue, below & (y > dome + 2.5) & (x < border), "liver")
    stomach = _ellipse(x, y, (border + between(24, 32), between(62, 74)), (22.0, between(14, 20)))
    _paint(tissue, below & (stomach < 1), "muscle")
    filling = "fluid" if between(0, 1) < 0.6 else "air"
    _paint(tissue, below & (stomach < 0.85), filling)

    heart = draw_heart(rng, t)
    u, v = heart.frame(x, y)
    outside, inside = heart.left(u, v)
    rv_mm = (heart.right(u, v) - 1.0) * heart.right_axes[0]
    fat_pad = between(2, 6)
    _paint(tissue, (outside < fat_pad) | (rv_mm < fat_pad), "fat")
    _paint(tissue, rv_mm < 3.0, "myocardium")
    cavity = (rv_mm < 0) & (outside > 0)
    _paint(tissue, cavity, "blood")
    # Trabeculae of the right ventricle: muscle inside its outline, part of the cavity's label.
    band = np.abs(v - between(-12, 12) - between(-0.4, 0.4) * u) < between(0.8, 1.6)
    _paint(tissue, cavity & band & (t > 0.3), "myocardium")
    np.copyto(label, 3, where=cavity)
    _paint(tissue, outside <= 0, "myocardium")
    np.copyto(label, 2, where=outside <= 0)
    _paint(tissue, inside <= 0, "blood")
    np.copyto(label, 1, where=inside <= 0)
    for side in (1.0, -1.0):
        place = math.radians(between(40, 75)) * side
        offset = 0.74 * heart.endo
        papillary = np.hypot(u - offset * math.cos(place), v - offset * math.sin(place))
        _paint(tissue, (papillary < between(2.8, 5.0)) & (inside < 0) & (t > 0.2), "myocardium")
    long_axis_mm = between(78, 96) * (1.0 - 0.14 * heart.contraction)
    return tissue, label, heart, span * long_axis_mm


def relaxation(protocol: MriProtocol) -> tuple[np.ndarray, np.ndarray]:
    """T1 and T2 in ms of every tissue at the protocol's field and contrast agent.

    Between and beyond 1.5 T and 3 T the times follow a power of the field; the agent adds
    ``relaxivity x concentration`` to both rates.
    """
    times = np.array([(tissue.t1_ms, tissue.t2_ms) for tissue in TISSUES.values()])
    power = np.log2(protocol.field_t / 1.5)
    t1, t2 = (times[:, :, 0] * (times[:, :, 1] / times[:, :, 0]) ** power).T
    uptake = np.array([tissue.uptake for tissue in TISSUES.values()])
    rate = _RELAXIVITY * protocol.contrast_agent_mm * uptake
    return 1.0 / (1.0 / t1 + rate), 1.0 / (1.0 / t2 + rate)


def draw(
    subject_rng: np.random.Generator,
    scan_rng: np.random.Generator,
    protocol: MriProtocol,
    *,
    size: int,
    slices: int,
) -> Scan:
    """Draw a subject from ``subject_rng`` and scan it with ``scan_rng``; see the package's draw."""
    pixel_mm = FIELD_OF_VIEW_MM / size
    # The object is known on half pixels, every second of which is a pixel's centre.
    half = (np.arange(2 * size, dtype=np.float32) - (size - 1)) * np.float32(pixel_mm / 2)
    x, y = half[None, :] + np.zeros_like(half)[:, None], half[:, None] + np.zeros_like(half)
    tissue, label, heart, slice_mm = anatomy(subject_rng, x, y, slices)
    patient = subject_rng.normal(1.0, 0.04, (3, len(TISSUES)))
    texture = smooth_field(subject_rng, slices, x.shape, cells=28)

    t1, t2 = relaxation(protocol)
    t1, t2 = (t1 * patient[0]).astype(np.float32), (t2 * patient[1]).astype(np.float32)
    density = np.array([entry.density for entry in TISSUES.values()]) * patient[2]
    fat = np.arange(len(TISSUES)) == _INDEX["fat"]
    density = density * np.where(fat, 1.0 - protocol.fat_suppression, 1.0) * protocol.field_t / 1.5
    roughness = np.array([entry.texture for entry in TISSUES.values()], np.float32)
    larmor_mhz = PROTON_MHZ_PER_TESLA * protocol.field_t
    chemical_hz = np.where(fat, FAT_SHIFT_PPM * larmor_mhz, 0.0).astype(np.float32)

    field_hz = smooth_field(scan_rng, 1, x.shape, cells=2) * np.float32(
        protocol.inhomogeneity_ppm * larmor_mhz
    )
    flip_deg = protocol.flip_deg * float(scan_rng.normal(1.0, 0.04))
    signal = bssfp_signal(
        t1[tissue], t2[tissue], flip_deg, protocol.tr_ms, chemical_hz[tissue] + field_hz
    )
    signal *= density.astype(np.float32)[tissue] * (1.0 + roughness[tissue] * texture)
    coil = (float(scan_rng.uniform(-50, 50)), float(scan_rng.uniform(-95, -75)))
    signal *= coil_sensitivity(x, y, coil, protocol.coil_decay)
    # A smooth phase, as from the coil and the field: it is what partial Fourier cannot recover.
    phase = np.exp(0.7j * smooth_field(scan_rng, 1, x.shape, cells=2)).astype(np.complex64)
    magnitude = acquire(scan_rng, signal * phase, size, protocol)
    gain = float(np.exp(scan_rng.normal(np.log(1000.0), 0.2)))
    labels = {
        "mask": np.ascontiguousarray(label[:, ::2, ::2]),
        "landmarks": numbered(heart.landmarks() / pixel_mm + (size - 1) / 2),
        "category": np.full(slices, 1 + (heart.contraction > 0.5), np.uint8),
    }
    return Scan(render(magnitude, protocol, gain), labels, (slice_mm, pixel_mm, pixel_mm))
