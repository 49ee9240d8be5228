"""How near found points are to true ones.

Radial error and success rate: Payer et al., "Integrating Spatial Configuration into Heatmap
Regression Based CNNs for Landmark Localization", Medical Image Analysis 2019, section 4.2. Where
the number of points varies, found and true ones are matched one to one, as many pairs within a
radius as can be and of these the nearest, and F1 = 2 TP / (2 TP + FP + FN).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree


def matched(truth: np.ndarray, found: np.ndarray, radius: float) -> np.ndarray:
    """The distances (n,) of the matched pairs of ``truth`` (N, D) and ``found`` (M, D), points in
    one unit: the largest possible number of pairs at most ``radius`` apart, and of all such
    matchings one with the smallest sum of distances."""
    if not len(truth) or not len(found):
        return np.zeros(0)
    distances = np.linalg.norm(truth[:, None] - found[None], axis=2)
    # A pair that is too far apart costs more than all pairs within the radius together.
    most = radius * (min(distances.shape) + 1) + 1
    rows, columns = linear_sum_assignment(np.where(distances <= radius, distances, most))
    pairs = distances[rows, columns]
    return np.asarray(pairs[pairs <= radius])


def nearest(points: np.ndarray) -> np.ndarray:
    """How far each of ``points`` (N, D) is from the nearest other one, (N,); none of a single
    one."""
    if len(points) < 2:
        return np.zeros(0)
    return np.asarray(KDTree(points).query(points, k=2)[0][:, 1])
