"""Heatmaps of points: what networks regress where points are to be found.

Payer et al., "Regressing Heatmaps for Multiple Landmark Localization Using CNNs", MICCAI 2016: one
map a landmark, a Gaussian around its place, learnt with an L2 loss; the place is the map's maximum.
Here several points of a class share a map, which is the largest of their Gaussians, each of height
1. Coordinates are x to the right and y down, in pixels, pixel centres at whole numbers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.ndimage import maximum_filter
from torch.nn import functional as F

REFINED = 2.0
"""Within so many standard deviations of a maximum its place is refined."""


def heatmaps(points: torch.Tensor, parts: int, size: tuple[int, int], sigma: float) -> torch.Tensor:
    """The maps (B, ``parts``, H, W) float32 of ``points`` (B, N, 3): x, y and the part's number,
    from 1; rows with nan are no points. ``sigma`` is the Gaussians' standard deviation in pixels.
    """
    height, width = size
    x, y, part = points.unbind(-1)
    known = points.isfinite().all(dim=-1)
    rows = torch.arange(height, device=points.device, dtype=points.dtype)
    columns = torch.arange(width, device=points.device, dtype=points.dtype)
    down = torch.exp(-((rows - y.nan_to_num(0.0)[..., None]) ** 2) / (2 * sigma**2))
    along = torch.exp(-((columns - x.nan_to_num(0.0)[..., None]) ** 2) / (2 * sigma**2))
    blobs = down[..., :, None] * along[..., None, :]
    numbers = torch.arange(1, parts + 1, device=points.device)
    mine = (known[:, None] & (part[:, None] == numbers[:, None]))[..., None, None]
    # One row of zeros more, so that where there is no point the map is empty.
    return F.pad(torch.where(mine, blobs[:, None], 0.0), (0, 0, 0, 0, 0, 1)).amax(dim=2).float()


def heatmap_loss(
    raw: torch.Tensor,
    points: torch.Tensor,
    sigma: float,
    told: torch.Tensor | None = None,
) -> torch.Tensor:
    """The squared difference of ``raw`` maps (B, parts, H, W) to those of ``points``, summed over
    pixels and divided by the energy of one Gaussian, pi sigma^2, so that an empty map loses 1 a
    point; the mean over the maps of which ``told`` (B, 1 + parts) is true."""
    found = raw.float()
    wanted = heatmaps(points, found.shape[1], (found.shape[2], found.shape[3]), sigma)
    errors = (found - wanted).square().sum(dim=(2, 3)) / (math.pi * sigma**2)
    if told is None:
        return errors.mean()
    counts = told[:, 1:]
    return (errors * counts).sum() / counts.sum().clamp(min=1)


def warp_points(points: torch.Tensor, theta: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """``points`` (B, N, 2 or more), x and y first, where they lie after images (B, C, H, W) of
    ``size`` were sampled at the affine maps ``theta`` (B, 2, 3), output to input."""
    extent = torch.tensor([size[3], size[2]], device=points.device, dtype=points.dtype)
    theta = theta.to(points.dtype)
    before = (2 * points[..., :2] + 1) / extent - 1
    moved = before - theta[:, None, :, 2]
    # The maps go from the new grid to the old one, and points the other way.
    after = torch.linalg.solve(theta[:, None, :, :2], moved.unsqueeze(-1)).squeeze(-1)
    return torch.cat([((after + 1) * extent - 1) / 2, points[..., 2:]], dim=-1)


def highest(heat: np.ndarray, sigma: float) -> tuple[np.ndarray, float]:
    """The place (slice, x, y) of the maximum of ``heat`` (S, H, W), refined in its slice, and the
    maximum."""
    place = np.unravel_index(int(heat.argmax()), heat.shape)
    x, y = _refined(heat[place[0]], int(place[1]), int(place[2]), sigma)
    return np.array([float(place[0]), x, y]), float(heat[place])


def peaks(heat: np.ndarray, sigma: float, threshold: float) -> np.ndarray:
    """The local maxima (n, 2), x and y, of one map (H, W) that reach ``threshold``; of neighbours
    within two standard deviations the highest alone."""
    radius = max(1, round(REFINED * sigma))
    local = (heat == maximum_filter(heat, 2 * radius + 1, mode="constant", cval=-np.inf)) & (
        heat >= threshold
    )
    rows, columns = np.nonzero(local)
    found = [_refined(heat, int(r), int(c), sigma) for r, c in zip(rows, columns, strict=True)]
    return np.array(found, float).reshape(-1, 2)


def _refined(heat: np.ndarray, row: int, column: int, sigma: float) -> tuple[float, float]:
    """x and y of the centre of mass of what is positive around a maximum of ``heat`` (H, W)."""
    radius = max(1, round(REFINED * sigma))
    # No further one way than the other, or the border would pull the centre inwards.
    up = min(radius, row, heat.shape[0] - 1 - row)
    left = min(radius, column, heat.shape[1] - 1 - column)
    window = heat[row - up : row + up + 1, column - left : column + left + 1].clip(min=0)
    total = float(window.sum())
    if total <= 0:
        return float(column), float(row)
    down, along = np.mgrid[-up : up + 1, -left : left + 1]
    return (
        column + float((window * along).sum()) / total,
        row + float((window * down).sum()) / total,
    )
