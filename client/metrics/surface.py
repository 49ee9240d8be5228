"""Distances between the surfaces of two masks, in millimetres.

The surface of a mask is its border voxels: those with a face neighbour outside the mask, where
everything beyond the image counts as outside. Distances run between voxel centres and are exact
Euclidean distances with spacing. Border and distances are those of MedPy's ``hd95`` and ``assd``
with ``connectivity=1``.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

_VOXELS_PER_QUERY = 20
"""A distance transform costs by the voxel, a tree by the query; about here they cost the same
(measured with ``benchmarks/distances.py``)."""


def border(mask: np.ndarray) -> np.ndarray:
    """Return the border voxels of a boolean mask of any dimension, as a mask of the same shape."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        kept, whole = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        kept[1:] &= whole[:-1]
        kept[:-1] &= whole[1:]
        kept[[0, -1]] = False
    return mask ^ inner


def surface_distances(
    first: np.ndarray, second: np.ndarray, spacing_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances in mm from each border voxel of either mask to the other's border.

    ``first`` and ``second`` are boolean, of one shape, and neither is empty; ``spacing_mm`` has a
    value for each axis. The first array belongs to the border of ``first``, the second to that of
    ``second``. Cropping both masks to the bounding box of their union changes nothing, because
    no border lies outside the box and a voxel on its edge has nothing of the mask beyond it.
    """
    first_border, second_border = border(first), border(second)
    return (
        _distances(first_border, second_border, spacing_mm),
        _distances(second_border, first_border, spacing_mm),
    )


def _distances(points: np.ndarray, targets: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """The distance in mm from each voxel of the mask ``points`` to the nearest of ``targets``."""
    apart = ~targets[points]  # Where the two surfaces coincide the distance is 0.
    if np.count_nonzero(apart) * _VOXELS_PER_QUERY > points.size:
        return distance_transform_edt(~targets, sampling=spacing_mm)[points]
    # Balancing the tree costs more than its faster queries win back.
    tree = cKDTree(
        np.argwhere(targets) * spacing_mm, leafsize=32, compact_nodes=False, balanced_tree=False
    )
    distances = np.zeros(len(apart))
    distances[apart] = tree.query(np.argwhere(points)[apart] * spacing_mm)[0]
    return distances
