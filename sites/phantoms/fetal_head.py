"""Fetal-head ultrasound: a head in the womb in millimetres, and four vendors that scan it.

Coordinates: x runs along the columns, y down the rows from the probe's face, both in millimetres.
The slices are parallel planes through the head, the middle of them at its widest.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fedshift.sites.phantoms.acquisition import Scan
from fedshift.sites.phantoms.fields import smooth_field
from fedshift.sites.phantoms.truth import numbered
from fedshift.sites.phantoms.ultrasound import (
    UltrasoundProtocol,
    amplitude,
    blur,
    compress,
    gain_compensation_db,
    point_spread,
    round_trip_loss_db,
    scan_convert,
)

STRUCTURES = ("fetal head",)
PARTS = {
    "mask": STRUCTURES,
    "boxes": STRUCTURES,
    "landmarks": ("ofd_1", "ofd_2", "bpd_1", "bpd_2"),
    "category": ("second trimester", "third trimester"),
    "image": (),
}
"""What the labels of each form tell apart. The landmarks are the ends of the occipito-frontal
diameter, left and right, and of the biparietal one, upper and lower."""
_THIRD_TRIMESTER_MM = 70.0
"""The biparietal diameter at about 28 weeks."""
FIELD_OF_VIEW_MM = 150.0
_PROBE_RADIUS_MM = 60.0
_HALF_FAN = math.radians(38.0)
_SLICE_RANGE_MM = 32.0
_SOFT_TISSUE = 0.5
"""Attenuation of soft tissue, dB / (cm MHz)."""


class Tissue(NamedTuple):
    """Backscatter (dB, relative to a perfect reflector) and attenuation (dB / (cm MHz))."""

    echo_db: float
    attenuation: float = _SOFT_TISSUE


TISSUES = {
    "fluid": Tissue(-75.0, 0.02),
    "skin": Tissue(-16.0, 0.6),
    "fat": Tissue(-33.0, 0.55),
    "muscle": Tissue(-29.0, 0.6),
    "fascia": Tissue(-15.0),
    "uterus": Tissue(-27.0),
    "placenta": Tissue(-22.0),
    "limb": Tissue(-25.0),
    "bone": Tissue(-6.0, 8.0),
    "skull": Tissue(-14.0, 3.0),
    "brain": Tissue(-38.0, 0.35),
    "thalamus": Tissue(-44.0, 0.35),
    "ventricle": Tissue(-52.0, 0.1),
    "plexus": Tissue(-24.0, 0.4),
    "midline": Tissue(-20.0, 0.4),
}
_INDEX = {name: index for index, name in enumerate(TISSUES)}
_SPECULAR_DB = -2.0
"""Mirror reflection of skull met at right angles, relative to a perfect reflector."""
_REFRACTION = 14.0
"""Attenuation, dB / (cm MHz), of skull met at a grazing angle, where the beam is bent away."""

REFERENCE = UltrasoundProtocol(
    frequency_mhz=3.5,
    cycles=2.0,
    aperture_mm=20.0,
    focus_mm=80.0,
    tgc=0.8,
    shadow=1.0,
    electronic_noise_db=-80.0,
    gain_db=4.0,
    dynamic_range_db=60.0,
    smoothing_mm=1.0,
    gamma=1.0,
)
"""The protocol that all vendors share at shift 0."""

VENDORS = {
    # A premium scanner: sharp, filtered, wide dynamic range.
    "vendor_a": UltrasoundProtocol(4.0, 1.5, 28.0, 80.0, 0.8, 0.8, -95.0, 4.0, 66.0, 1.2, 0.9),
    # High contrast: a short dynamic range leaves the skull and little else.
    "vendor_b": UltrasoundProtocol(3.0, 2.5, 18.0, 90.0, 0.7, 1.4, -85.0, 2.0, 46.0, 0.8, 1.3),
    # An old portable one: wide beams, strong gain in depth, a noisy receiver, grey fluid.
    "vendor_c": UltrasoundProtocol(2.5, 4.0, 12.0, 60.0, 1.1, 0.5, -68.0, 4.0, 75.0, 0.3, 0.9),
    # High frequency: fine speckle, deep shadows, a near focus.
    "vendor_d": UltrasoundProtocol(5.0, 2.0, 24.0, 55.0, 0.55, 1.8, -85.0, 8.0, 50.0, 0.5, 0.8),
}

PAIR = UltrasoundProtocol(4.5, 1.0, 40.0, 80.0, 0.9, 0.4, -110.0, 4.0, 66.0, 1.6, 1.0)
"""Of every subject's paired image, alike at all sites: thin beams, little shadow, no noise."""


def _paint(tissue: np.ndarray, where: np.ndarray, name: str) -> None:
    np.copyto(tissue, _INDEX[name], where=where)


class Head(NamedTuple):
    """An ellipse that varies over the slices; half axes are (S, 1, 1), in mm."""

    biparietal_mm: float
    centre: tuple[float, float]
    angle: float
    long_mm: np.ndarray
    short_mm: np.ndarray

    def frame(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates along the long and the short axis, in mm."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        dx, dy = x - self.centre[0], y - self.centre[1]
        return cos * dx + sin * dy, cos * dy - sin * dx

    def radius(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Normalised radius (S, H, W) of points (H, W): below 1 inside the head."""
        u, v = self.frame(x, y)
        return np.hypot(u / self.long_mm, v / self.short_mm)

    def landmarks(self) -> np.ndarray:
        """The ends of the long axis, left and right, and of the short one, upper and lower,
        (S, 4, 2) x and y in mm: no pose of :func:`draw_head` comes near to changing their order."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        along = self.long_mm * np.array([[-cos, -sin], [cos, sin]])
        across = self.short_mm * np.array([[sin, -cos], [-sin, cos]])
        return np.concatenate([along, across], axis=1) + self.centre


def draw_head(rng: np.random.Generator, slices: int) -> Head:
    """Draw a head of 18 to 34 weeks: its pose and its outline in every slice."""
    biparietal = float(rng.uniform(46, 88))
    long_mm = 0.5 * biparietal / float(rng.uniform(0.74, 0.84))
    centre = (float(rng.uniform(-12, 12)), float(rng.uniform(72, 84)))
    angle = math.radians(float(rng.uniform(-35, 35)))
    height = (np.arange(slices, dtype=np.float32) + 0.5) / slices - 0.5
    section = np.sqrt(1.0 - (height * _SLICE_RANGE_MM / (0.62 * biparietal)) ** 2)[:, None, None]
    return Head(biparietal, centre, angle, long_mm * section, 0.5 * biparietal * section)


def anatomy(
    rng: np.random.Generator, head: Head, x: np.ndarray, y: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """Draw what surrounds and fills ``head`` at the points ``x``, ``y`` (H, W), in mm.

    ``depth`` (H, W) is the distance from the probe's face. Returns the tissue (S, H, W) uint8 as
    an index into ``TISSUES``.
    """

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    slices = len(head.long_mm)
    radius = head.radius(x, y)
    # The mother: skin, fat, muscle between fasciae, the wall of the uterus, amniotic fluid.
    wavy = 1.5 * np.sin(x / between(14, 22) + between(0, 6.3))
    fat_mm, muscle_mm, uterus_mm = between(5, 11), between(5, 9), between(4, 7)
    layers = np.full(x.shape, _INDEX["skin"], np.uint8)
    edge = 2.5 + wavy
    _paint(layers, depth > 2.5, "fat")
    edge = edge + fat_mm
    _paint(layers, depth > edge, "fascia")
    _paint(layers, depth > edge + 1.2, "muscle")
    edge = edge + muscle_mm
    _paint(layers, depth > edge, "fascia")
    _paint(layers, depth > edge + 1.2, "uterus")
    edge = edge + uterus_mm
    _paint(layers, depth > edge, "fluid")
    tissue = np.repeat(layers[None], slices, axis=0)
    # The placenta on one wall, the far wall of the uterus, a limb beside the head.
    front = between(0, 1) < 0.5
    thickness = between(10, 24) * np.cos(np.clip((x - between(-40, 40)) / 50.0, -1.5, 1.5))
    far = between(126, 140) + 0.004 * (x - between(-20, 20)) ** 2 * between(-1, 0.3)
    placenta = depth - edge < thickness if front else far - y < thickness
    _paint(tissue, placenta & (depth > edge) & (y < far), "placenta")
    _paint(tissue, y > far, "uterus")
    _paint(tissue, y > far + uterus_mm, "fascia")
    _paint(tissue, y > far + uterus_mm + 1.5, "muscle")
    side = 1.0 if between(0, 1) < 0.5 else -1.0
    limb = (side * between(50, 64), between(45, 110))
    limb_mm = np.hypot(x - limb[0], (y - limb[1]) * between(0.5, 0.8))
    _paint(tissue, limb_mm < between(9, 14), "limb")
    _paint(tissue, limb_mm < between(2, 3), "bone")

    # The head: scalp, skull, brain with its midline and what lies beside it.
    u, v = head.frame(x, y)
    scalp_mm, skull_mm = between(1.5, 3.0), between(2.2, 3.4)
    inner = (radius - 1.0) * head.short_mm
    _paint(tissue, inner < scalp_mm, "limb")
    _paint(tissue, inner < 0.0, "skull")
    brain = inner < -skull_mm
    _paint(tissue, brain, "brain")
    size_u, size_v = u / head.long_mm, v / head.short_mm
    lobe = np.abs(size_v)
    _paint(tissue, np.hypot((size_u - 0.05) / 0.22, (lobe - 0.2) / 0.15) < 1, "thalamus")
    horn = np.hypot((size_u + between(0.35, 0.45)) / 0.28, (lobe - between(0.3, 0.38)) / 0.14)
    _paint(tissue, horn < 1, "ventricle")
    _paint(tissue, horn < between(0.55, 0.8), "plexus")
    cavum = (np.abs(size_u - between(0.35, 0.45)) < 0.1) & (lobe < 0.06)
    _paint(tissue, brain & (np.abs(v) < 0.9) & (radius < 0.9), "midline")
    _paint(tissue, cavum, "ventricle")
    return tissue


def draw(
    subject_rng: np.random.Generator,
    scan_rng: np.random.Generator,
    protocol: UltrasoundProtocol,
    *,
    size: int,
    slices: int,
) -> Scan:
    """Draw a subject from ``subject_rng`` and scan it with ``scan_rng``; see the package's draw."""
    pixel_mm = FIELD_OF_VIEW_MM / size
    head = draw_head(subject_rng, slices)
    centre = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(pixel_mm)
    label = head.radius(centre[None, :] - FIELD_OF_VIEW_MM / 2, centre[:, None]) < 1.0

    # Beam space: the fan's apex lies a probe's radius above the image.
    samples, beams = 2 * size, 3 * size // 2
    step_mm = FIELD_OF_VIEW_MM / samples
    angles = np.linspace(-_HALF_FAN, _HALF_FAN, beams, dtype=np.float32)
    depth = np.arange(samples, dtype=np.float32) * np.float32(step_mm)
    x = (depth + _PROBE_RADIUS_MM)[:, None] * np.sin(angles)
    y = (depth + _PROBE_RADIUS_MM)[:, None] * np.cos(angles) - _PROBE_RADIUS_MM
    tissue = anatomy(subject_rng, head, x, y, depth[:, None] + np.zeros_like(x))
    patches = smooth_field(subject_rng, slices, x.shape, cells=14)

    # Angle between beam and skull: the outline's normal is the gradient of its radius.
    u, v = head.frame(x, y)
    nu, nv = u / head.long_mm**2, v / head.short_mm**2
    cos, sin = math.cos(head.angle), math.sin(head.angle)
    along = (cos * nu - sin * nv) * np.sin(angles) + (sin * nu + cos * nv) * np.cos(angles)
    facing = np.abs(along) / (np.hypot(nu, nv) + 1e-12)
    skull = tissue == _INDEX["skull"]

    echo_db = np.array([entry.echo_db for entry in TISSUES.values()], np.float32)
    attenuation = np.array([entry.attenuation for entry in TISSUES.values()], np.float32)
    hard = np.isin(np.arange(len(TISSUES)), (_INDEX["skull"], _INDEX["bone"]))
    attenuation = np.where(hard, attenuation * protocol.shadow, attenuation).astype(np.float32)
    loss = attenuation[tissue] + np.where(
        skull, np.float32(_REFRACTION * protocol.shadow) * (1.0 - facing) ** 3, np.float32(0.0)
    )
    scatter = scan_rng.standard_normal((2, *tissue.shape), dtype=np.float32) / math.sqrt(2.0)
    echo = scatter[0] + 1j * scatter[1]
    echo *= amplitude(echo_db[tissue] + 1.5 * patches)
    beam_mm = (depth + _PROBE_RADIUS_MM) * (2.0 * _HALF_FAN / (beams - 1))
    spread = point_spread(step_mm, beam_mm, beams, protocol)
    mirror = amplitude(_SPECULAR_DB) / spread.mirror_gain[:, None]
    echo += np.where(skull, mirror * np.square(np.square(facing)), 0.0).astype(np.float32)
    echo *= amplitude(-round_trip_loss_db(loss, step_mm, protocol))
    received = blur(echo, spread)
    noise = scan_rng.standard_normal((2, *tissue.shape), dtype=np.float32) / math.sqrt(2.0)
    received += float(amplitude(protocol.electronic_noise_db)) * (noise[0] + 1j * noise[1])
    gain_db = gain_compensation_db(depth, protocol, _SOFT_TISSUE) + scan_rng.normal(0.0, 1.5)
    grey = compress(np.abs(received) * amplitude(gain_db[:, None]), protocol)

    half = (np.arange(2 * size) + 0.5) * (pixel_mm / 2)
    across, down = half[None, :] - FIELD_OF_VIEW_MM / 2, half[:, None] + _PROBE_RADIUS_MM
    rows = (np.hypot(across, down) - _PROBE_RADIUS_MM) / step_mm
    columns = (np.arctan2(across, down) + _HALF_FAN) / (2.0 * _HALF_FAN) * (beams - 1)
    image = scan_convert(grey, rows, columns, protocol.smoothing_mm / pixel_mm)
    places = (head.landmarks() + np.array([FIELD_OF_VIEW_MM / 2, 0.0])) / pixel_mm - 0.5
    labels = {
        "mask": label.astype(np.uint8),
        "landmarks": numbered(places),
        "category": np.full(slices, 1 + (head.biparietal_mm >= _THIRD_TRIMESTER_MM), np.uint8),
    }
    spacing_mm = (_SLICE_RANGE_MM / slices, pixel_mm, pixel_mm)
    return Scan((255.0 * image).astype(np.float32), labels, spacing_mm)
