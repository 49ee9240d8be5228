"""Colonies on culture dishes, any number of two species, and four cameras that photograph them.

Coordinates: x runs along the columns, y down the rows, both in millimetres from the dish's middle.
Every slice is a dish of its own. What a detector must not count are the lamps' reflections.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from fedshift.sites.labels.base import padded
from fedshift.sites.phantoms.acquisition import Scan
from fedshift.sites.phantoms.fields import smooth_field

SPECIES = ("round colony", "flat colony")
PARTS = {
    "points": SPECIES,
    "boxes": SPECIES,
    "mask": SPECIES,
    "instances": ("colony",),
    "category": ("few", "many"),
}
"""What the labels of each form tell apart; many are ``MANY`` colonies and more."""
FIELD_OF_VIEW_MM = 96.0
_DISH_MM = 43.0
_COLONIES = (4, 28)
"""How many a dish holds at least and at most."""
MANY = 16
_RADII_MM = ((2.0, 2.8), (2.4, 3.6))
_GAP_MM = 0.8


class Material(NamedTuple):
    """The light that it sends back, and that which it lets through, of 1."""

    reflected: float
    transmitted: float


TABLE, RIM, AGAR = Material(0.15, 0.95), Material(0.55, 0.5), Material(0.35, 0.7)
COLONIES = (Material(0.85, 0.35), Material(0.12, 0.5))
"""Of the species: opaque and white, thin and dark."""


@dataclass(frozen=True)
class Camera:
    """How one vendor photographs."""

    backlight: float
    """The part of the light that comes from below, 0 to 1: colonies are dark before it."""
    relief: float
    """How far the slope of a colony's dome changes what it reflects: light from the side."""
    reflections: float
    """How many reflections of the lamps a dish shows, on average."""
    glare: float
    """Their brightness, of white's."""
    blur_mm: float
    """Standard deviation of the lens's blur."""
    vignetting: float
    """The loss of light at the edge of the dish, 0 to 1."""
    noise: float
    """Standard deviation of the noise of a white pixel; it falls with the root of the light."""
    gamma: float
    """Exponent of the vendor's intensity curve."""


REFERENCE = Camera(0.15, 0.2, 4.0, 0.9, 0.5, 0.1, 0.03, 1.0)
"""The camera that all vendors share at shift 0."""

VENDORS = {
    # A light tent: even light from above, hardly a reflection, sharp.
    "vendor_a": Camera(0.0, 0.05, 1.0, 0.7, 0.4, 0.05, 0.015, 1.1),
    # A lamp at the side: shaded domes, many glaring reflections, a bright curve.
    "vendor_b": Camera(0.1, 0.8, 8.0, 1.3, 0.6, 0.4, 0.03, 0.7),
    # A light table: colonies stand dark before it; the lens is soft.
    "vendor_c": Camera(0.9, 0.1, 0.5, 0.5, 1.1, 0.25, 0.04, 1.0),
    # A telephone: mixed light, reflections, noise, a dark curve.
    "vendor_d": Camera(0.35, 0.5, 6.0, 1.1, 0.8, 0.5, 0.07, 1.5),
}


class Colonies(NamedTuple):
    """A dish's colonies (n,): their middles in mm, their radii, and their species, from 0."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    species: np.ndarray


def draw_dish(rng: np.random.Generator, flat: float) -> Colonies:
    """Draw a dish whose colonies are, by the fraction ``flat``, of the second species. None
    overlap; where a dish has no room left, it holds fewer."""
    placed: list[tuple[float, float, float, int]] = []
    for _ in range(int(rng.integers(_COLONIES[0], _COLONIES[1] + 1))):
        species = int(rng.uniform() < flat)
        radius = float(rng.uniform(*_RADII_MM[species]))
        for _ in range(50):
            far, angle = (_DISH_MM - 4.5) * math.sqrt(rng.uniform()), rng.uniform(0, 2 * math.pi)
            x, y = far * math.cos(angle), far * math.sin(angle)
            if all(math.hypot(x - a, y - b) > radius + r + _GAP_MM for a, b, r, _ in placed):
                placed.append((x, y, radius, species))
                break
    x, y, radius, species = np.array(placed).T
    return Colonies(x, y, radius, species.astype(int))


def draw(
    subject_rng: np.random.Generator,
    scan_rng: np.random.Generator,
    camera: Camera,
    *,
    size: int,
    slices: int,
) -> Scan:
    """Draw a subject from ``subject_rng`` and scan it with ``scan_rng``; see the package's draw."""
    pixel_mm = FIELD_OF_VIEW_MM / size
    flat = float(subject_rng.uniform(0.3, 0.7))
    dishes = [draw_dish(subject_rng, flat) for _ in range(slices)]
    half = (np.arange(2 * size) + 0.5) * (pixel_mm / 2) - FIELD_OF_VIEW_MM / 2
    x, y = np.meshgrid(half, half)
    texture = 1.0 + 0.05 * smooth_field(subject_rng, slices, x.shape, cells=14)
    light = np.stack([photograph(scan_rng, dish, x, y, camera) for dish in dishes]) * texture
    light = ndimage.gaussian_filter(light, (0, *[2 * camera.blur_mm / pixel_mm] * 2))
    light = light.reshape(slices, size, 2, size, 2).mean(axis=(2, 4))
    centre = (np.arange(size) + 0.5) * pixel_mm - FIELD_OF_VIEW_MM / 2
    far = np.hypot(centre, centre[:, None]) / _DISH_MM
    light *= 1.0 - camera.vignetting * np.minimum(far, 1.3) ** 2
    light = light.clip(0.0)
    light += camera.noise * np.sqrt(light) * scan_rng.standard_normal(light.shape)
    image = (255.0 * light.clip(0.0, 1.0) ** camera.gamma).astype(np.float32)

    objects = [_objects(dish, *np.meshgrid(centre, centre)) for dish in dishes]
    instances = np.stack(objects).astype(np.uint16)
    labels = {
        "points": padded([_points(dish, pixel_mm) for dish in dishes], 3),
        "boxes": padded([_boxes(dish, pixel_mm) for dish in dishes], 5),
        "instances": instances,
        "mask": np.stack(
            [
                np.r_[0, dish.species + 1][numbers]
                for dish, numbers in zip(dishes, instances, strict=True)
            ]
        ).astype(np.uint8),
        "category": np.array([1 + (len(dish.x) >= MANY) for dish in dishes], np.uint8),
    }
    return Scan(image, labels, (1.0, pixel_mm, pixel_mm))


def photograph(
    rng: np.random.Generator, dish: Colonies, x: np.ndarray, y: np.ndarray, camera: Camera
) -> np.ndarray:
    """The light (H, W), of a white sheet's, that comes from the points ``x``, ``y`` of a dish."""
    radius = np.hypot(x, y)
    light = np.full(x.shape, _light(TABLE, camera))
    np.copyto(light, _light(RIM, camera), where=radius < _DISH_MM + 2.0)
    np.copyto(light, _light(AGAR, camera), where=radius < _DISH_MM)
    lamp = math.radians(float(rng.normal(-120.0, 15.0)))
    toward = math.cos(lamp), math.sin(lamp)
    for centre_x, centre_y, radius_mm, species in zip(*dish, strict=True):
        dx, dy = (x - centre_x) / radius_mm, (y - centre_y) / radius_mm
        # Only the first species stands up from the agar.
        slope = (dx * toward[0] + dy * toward[1]) * (species == 0)
        there = np.hypot(dx, dy) < 1.0
        np.copyto(light, _light(COLONIES[species], camera, camera.relief * slope), where=there)
    # Reflections are of one lamp: alike, and as small and bright as a colony.
    along = np.cos(lamp) * x + np.sin(lamp) * y, np.cos(lamp) * y - np.sin(lamp) * x
    for _ in range(int(rng.poisson(camera.reflections))):
        far, angle = _DISH_MM * math.sqrt(rng.uniform()), rng.uniform(0, 2 * math.pi)
        u, v = far * math.cos(angle), far * math.sin(angle)
        light += camera.glare * np.exp(
            -0.5 * (((along[0] - u) / 0.7) ** 2 + ((along[1] - v) / 1.8) ** 2)
        )
    return light


def _light(material: Material, camera: Camera, slope: np.ndarray | float = 0.0) -> np.ndarray:
    reflected = material.reflected * (1.0 + np.asarray(slope))
    return (1.0 - camera.backlight) * reflected + camera.backlight * material.transmitted


def _objects(dish: Colonies, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which colony (from 1) the points ``x``, ``y`` (H, W) belong to; 0 for none."""
    numbers = np.zeros(x.shape, int)
    for number, (centre_x, centre_y, radius) in enumerate(zip(*dish[:3], strict=True), 1):
        numbers[np.hypot(x - centre_x, y - centre_y) < radius] = number
    return numbers


def _points(dish: Colonies, pixel_mm: float) -> np.ndarray:
    x, y = ((each + FIELD_OF_VIEW_MM / 2) / pixel_mm - 0.5 for each in (dish.x, dish.y))
    return np.stack([x, y, dish.species + 1], axis=-1)


def _boxes(dish: Colonies, pixel_mm: float) -> np.ndarray:
    x, y, part = _points(dish, pixel_mm).T
    radius = dish.radius / pixel_mm
    return np.stack([x - radius, y - radius, x + radius, y + radius, part], axis=-1)
