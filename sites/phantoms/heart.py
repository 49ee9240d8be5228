"""A heart's outlines in short-axis slices, in millimetres, and where they meet.

The heart's own frame (u, v) has its origin in the middle of the left ventricle; the septum and the
right ventricle lie towards -u. t runs from the valve plane (0) to the apex (1).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Heart(NamedTuple):
    """Radii, axes and drift are (S, 1, 1), in mm. The left ventricle's outlines vary with the angle
    about its centre: ``oval`` by the second harmonic, ``notch`` by the third."""

    centre: tuple[float, float]
    angle: float
    drift: tuple[np.ndarray, np.ndarray]
    contraction: float
    endo: np.ndarray
    epi: np.ndarray
    oval: tuple[float, float]
    notch: float
    right_axes: tuple[np.ndarray, np.ndarray]
    right_offset: tuple[float, float]

    def frame(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The coordinates (S, H, W) of points (H, W) in the heart's frame, in mm."""
        dx, dy = x - self.centre[0] - self.drift[0], y - self.centre[1] - self.drift[1]
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return cos * dx + sin * dy, cos * dy - sin * dx

    def left(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far outside the left ventricle's outer and inner outline points are, in mm."""
        r = np.hypot(u, v) + 1e-3
        oval = self._oval(u, v, r)
        notch = 1.0 + self.notch * (u / r) * (4.0 * (u / r) ** 2 - 3.0)
        return r - self.epi * oval, r - self.endo * oval * notch

    def _oval(self, u: np.ndarray, v: np.ndarray, r: np.ndarray | float) -> np.ndarray:
        cos2, sin2 = (u * u - v * v) / r**2, 2.0 * u * v / r**2
        return 1.0 + self.oval[0] * cos2 + self.oval[1] * sin2

    def right(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Normalised radius about the right ventricle: below 1 inside."""
        return np.hypot(
            (u + self.epi + self.right_offset[0]) / self.right_axes[0],
            (v + self.right_offset[1]) / self.right_axes[1],
        )

    def landmarks(self) -> np.ndarray:
        """Where the middle of the left ventricle and the right one's two insertions lie, (S, 3, 2)
        x and y in mm: the insertions are where the right outline meets the left one, at the front
        (-v) and at the back."""
        places = [(np.zeros_like(self.epi), np.zeros_like(self.epi))]
        for side in (-1.0, 1.0):
            # Along the left outline from the septum, inside the right ventricle, to the free wall.
            inside, outside = np.full_like(self.epi, math.pi), np.zeros_like(self.epi)
            for _ in range(24):
                angle = (inside + outside) / 2
                u, v = np.cos(angle), side * np.sin(angle)
                radius = self.epi * self._oval(u, v, 1.0)
                within = self.right(radius * u, radius * v) < 1.0
                inside, outside = np.where(within, angle, inside), np.where(within, outside, angle)
            places.append((radius * u, radius * v))
        u, v = (np.concatenate(each, axis=2)[:, 0] for each in zip(*places, strict=True))
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        x = self.centre[0] + self.drift[0][:, 0] + cos * u - sin * v
        y = self.centre[1] + self.drift[1][:, 0] + sin * u + cos * v
        return np.stack([x, y], axis=-1)


def draw_heart(rng: np.random.Generator, t: np.ndarray) -> Heart:
    """Draw a heart at a moment of its cycle, in slices at ``t`` (S, 1, 1)."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    centre, angle = (between(2, 16), between(-8, 8)), math.radians(between(5, 50))
    drift = between(-8, 8) * (t - 0.5), between(-6, 6) * (t - 0.5)
    taper = np.sqrt(1.0 - (0.92 * t) ** 2)
    contraction = between(0, 1)
    endo_ed = between(21, 29) * taper
    epi_ed = endo_ed + between(7, 11) * (1.0 - 0.25 * t)
    endo = endo_ed * (1.0 - 0.36 * contraction)
    # The wall keeps its volume: as the heart shortens by a seventh, its cross-section grows.
    epi = np.sqrt(endo**2 + (epi_ed**2 - endo_ed**2) * (1.0 + 0.15 * contraction))
    oval = between(-0.06, 0.06), between(-0.06, 0.06)
    notch = between(-0.05, 0.05)
    right_axes = (
        between(22, 28) * (1.0 - 0.22 * contraction) * (1.05 - 0.5 * t),
        between(36, 43) * (1.0 - 0.12 * contraction) * (1.05 - 0.55 * t),
    )
    right_offset = between(-3, 2), between(-6, 6)
    return Heart(
        centre, angle, drift, contraction, endo, epi, oval, notch, right_axes, right_offset
    )
