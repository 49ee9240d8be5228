"""Connectomes of two groups: block graphs with planted edges, and four scanners that measure them.

A subject's graph is a symmetric matrix of weights from 0 to 1 between ``size`` nodes. The nodes
fall into communities, strongly connected within; the second group has edges of its own between two
pairs of them. Every slice is a session: the same subject, measured anew. The image is the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedshift.sites.phantoms.acquisition import Scan

PARTS: dict[str, tuple[str, ...]] = {"graph": (), "category": ("group 1", "group 2")}
"""What the labels of each form tell apart."""
COMMUNITIES = 8
PLANTED = ((0, 3), (2, 6))
"""The communities between which the second group has edges."""
_WITHIN, _BETWEEN, _EDGE = 0.65, 0.15, 0.45


@dataclass(frozen=True)
class Scanner:
    """How one vendor measures."""

    gain: float
    """What every weight is multiplied by."""
    common: float
    """What a signal common to all nodes adds to every weight."""
    nearness: float
    """What motion adds between neighbouring nodes; it falls off over ``size`` / 16 of them."""
    noise: float
    """Standard deviation of a weight's noise."""


REFERENCE = Scanner(1.0, 0.0, 0.05, 0.05)
"""The scanner that all vendors share at shift 0."""

VENDORS = {
    "vendor_a": Scanner(1.1, 0.0, 0.0, 0.03),
    "vendor_b": Scanner(0.6, 0.2, 0.1, 0.06),
    "vendor_c": Scanner(0.9, 0.05, 0.3, 0.12),
    "vendor_d": Scanner(0.5, 0.35, 0.2, 0.1),
}


def communities(size: int) -> np.ndarray:
    """The community (size,) of each node, from 0: as even as can be, in order."""
    return np.arange(size) * COMMUNITIES // size


def draw(
    subject_rng: np.random.Generator,
    scan_rng: np.random.Generator,
    scanner: Scanner,
    *,
    size: int,
    slices: int,
) -> Scan:
    """Draw a subject from ``subject_rng`` and scan it with ``scan_rng``; see the package's draw."""
    group = int(subject_rng.integers(1, 3))
    mean = np.full((COMMUNITIES, COMMUNITIES), _BETWEEN)
    np.fill_diagonal(mean, _WITHIN)
    for a, b in PLANTED if group == 2 else ():
        mean[a, b] = mean[b, a] = _EDGE
    own = _symmetric(subject_rng.normal(0.0, 0.05, (1, *mean.shape)))[0]
    place = communities(size)
    graph = (mean + own)[place[:, None], place]
    graph = graph + _symmetric(subject_rng.normal(0.0, 0.05, (1, size, size)))[0]
    apart = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    measured = scanner.gain * graph + scanner.common
    measured = measured + scanner.nearness * np.exp(-16.0 * apart / size)
    measured = measured + _symmetric(scan_rng.normal(0.0, scanner.noise, (slices, size, size)))
    measured = measured.clip(0.0, 1.0).astype(np.float32)
    measured[:, np.arange(size), np.arange(size)] = 0.0
    labels = {"graph": measured, "category": np.full(slices, group, np.uint8)}
    return Scan(measured, labels, (1.0, 1.0, 1.0))


def _symmetric(values: np.ndarray) -> np.ndarray:
    """The upper triangles of ``values`` (S, N, N), mirrored."""
    upper = np.triu(values)
    return upper + np.triu(upper, 1).swapaxes(1, 2)
