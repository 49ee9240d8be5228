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
from scipy.ndimage import find_objects, label, maximum_filter
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
    index = int(np.unravel_index(int(heat.argmax()), heat.shape)[0])
    height = heat[index].max()
    # Not `==`, which is true of no pixel where the map is not finite.
    _, boxes = _plateaus(~(heat[index] < height))
    return np.array([float(index), *_refined(heat[index], boxes[0], sigma)]), float(height)


def peaks(heat: np.ndarray, sigma: float, threshold: float) -> np.ndarray:
    """The local maxima (n, 2), x and y, of one map (H, W) that reach ``threshold``; of neighbours
    within two standard deviations the highest alone. Pixels side by side that are equally high are
    one maximum, and of equal neighbours apart the first counts."""
    radius = _reach(sigma)
    local = (heat == maximum_filter(heat, 2 * radius + 1, mode="constant", cval=-np.inf)) & (
        heat >= threshold
    )
    numbers, boxes = _plateaus(local)
    near = np.zeros(heat.shape, bool)
    found = []
    for number, box in enumerate(boxes, start=1):
        if near[box][numbers[box] == number].any():
            continue
        near[tuple(slice(max(0, one.start - radius), one.stop + radius) for one in box)] = True
        found.append(_refined(heat, box, sigma))
    return np.array(found, float).reshape(-1, 2)


def _reach(sigma: float) -> int:
    return max(1, round(REFINED * sigma))


def _plateaus(chosen: np.ndarray) -> tuple[np.ndarray, list[tuple[slice, slice]]]:
    """The connected parts of a mask (H, W), row by row: each pixel's part, from 1, and the rows and
    columns of each."""
    numbers, _ = label(chosen, np.ones((3, 3)))
    return numbers, find_objects(numbers)


def _refined(heat: np.ndarray, box: tuple[slice, slice], sigma: float) -> tuple[float, float]:
    """x and y of the centre of mass of what is positive around a maximum of ``heat`` (H, W), which
    the rows and columns of ``box`` hold."""
    radius = _reach(sigma)
    rows, columns = box
    # No further one way than the other, or the border would pull the centre inwards.
    up = min(radius, rows.start, heat.shape[0] - rows.stop)
    left = min(radius, columns.start, heat.shape[1] - columns.stop)
    window = heat[rows.start - up : rows.stop + up, columns.start - left : columns.stop + left]
    window = window.clip(min=0)
    middle = (columns.start + columns.stop - 1) / 2, (rows.start + rows.stop - 1) / 2
    total = float(window.sum())
    if total <= 0:
        return middle
    down, along = np.indices(window.shape) - (np.array(window.shape).reshape(2, 1, 1) - 1) / 2
    return (
        middle[0] + float((window * along).sum()) / total,
        middle[1] + float((window * down).sum()) / total,
    )
