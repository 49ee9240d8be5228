"""Smooth random fields, whose statistics do not depend on the grid they are evaluated on."""

from __future__ import annotations

import numpy as np


def _along(points: np.ndarray, axis: int, samples: int) -> np.ndarray:
    """Evaluate the uniform cubic B-spline with control ``points`` at ``samples`` places of an axis.

    Sums four taps rather than multiplying by a matrix: a matrix product's rounding may depend on
    its number of threads.
    """
    position = np.linspace(0.0, points.shape[axis] - 3, samples, endpoint=False)
    first = position.astype(np.int64)
    u = position - first
    taps = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    shape = [1] * points.ndim
    shape[axis] = samples
    return sum(
        (tap / 6.0).reshape(shape) * points.take(first + offset, axis=axis)
        for offset, tap in enumerate(taps)
    )


def smooth_field(
    rng: np.random.Generator, slices: int, shape: tuple[int, int], cells: int
) -> np.ndarray:
    """Draw a zero-mean, unit-variance field (slices, *shape) float32 with ``cells`` bumps a side.

    The draws are the control points of a cubic B-spline surface, so one seed gives one field at
    any grid size.
    """
    points = rng.standard_normal((slices, cells + 3, cells + 3))
    field = _along(_along(points, 1, shape[0]), 2, shape[1])
    # The squared weights of one axis sum to 151 / 315 on average.
    return (field * (315 / 151)).astype(np.float32)
