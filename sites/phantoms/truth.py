"""Exact labels: what follows from a mask, also from one that a site outlines in its own way.

Coordinates are pixels, centres at whole numbers: x along the columns, y down the rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from fedshift.sites.labels.base import padded

_TOUCHING = np.ones((3, 3), bool)
"""Pixels that meet at a corner are of one object."""


def numbered(places: np.ndarray) -> np.ndarray:
    """Landmarks at ``places`` (S, N, 2) as a label (S, N, 3) float32: row n is part n + 1."""
    numbers = np.broadcast_to(np.arange(1, places.shape[1] + 1), places.shape[:2])
    return np.concatenate([places, numbers[..., None]], axis=-1).astype(np.float32)


def boxes(mask: np.ndarray) -> np.ndarray:
    """The box around every connected piece of a structure in ``mask`` (S, H, W), as (S, N, 5)
    float32: x1, y1, x2, y2 at the outermost pixels' edges, and the structure's number."""
    return padded([np.array(_pieces(plane), float).reshape(-1, 5) for plane in mask], 5)


def _pieces(plane: np.ndarray) -> list[list[float]]:
    return [
        [columns.start - 0.5, rows.start - 0.5, columns.stop - 0.5, rows.stop - 0.5, k]
        for k in range(1, int(plane.max()) + 1)
        for rows, columns in ndimage.find_objects(ndimage.label(plane == k, _TOUCHING)[0])
    ]


def instances(mask: np.ndarray) -> np.ndarray:
    """The connected pieces of ``mask`` (S, H, W), numbered in each slice from 1, as uint16."""
    pieces = [ndimage.label(plane, _TOUCHING)[0] for plane in mask]
    return np.stack(pieces).astype(np.uint16)


def outlined(mask: np.ndarray, out_mm: float, pixel_mm: tuple[float, float]) -> np.ndarray:
    """``mask`` (S, H, W) with the outline of all structures together moved out by ``out_mm``,
    or in; what the outline passes over takes the structure nearest to it, or the background.

    A pixel's centre is half a pixel inside or outside the outline next to it, so the outline moves
    by whole pixels.
    """
    moved = mask.copy()
    for plane, original in zip(moved, mask, strict=True):
        labelled = original > 0
        if not labelled.any():
            continue
        passed = ~labelled if out_mm > 0 else labelled
        distance, nearest = ndimage.distance_transform_edt(
            passed, sampling=pixel_mm, return_indices=True
        )
        reached = passed & (distance - pixel_mm[0] / 2 <= abs(out_mm))
        plane[reached] = original[tuple(nearest)][reached]
    return moved


FROM_MASK: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mask": lambda mask: mask,
    "boxes": boxes,
    "instances": instances,
}
"""How the label of a form follows from the mask (S, H, W) uint8."""
