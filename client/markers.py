"""Points over an image, as marks: what a model finds beside the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedshift.client.panels import MAX_SLICES, color_of, draw_panels, edge
from fedshift.sites.types import Case

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Note = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], str]
"""What is said of a slice: true and found points (n, 2) of each part, in mm, in words."""


def draw_points(
    case: Case,
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    parts: Sequence[str],
    path: Path,
    *,
    site: str,
    note: Note,
) -> Path:
    """Draw one PNG of ``case``: a row a slice; the image, the true points as rings, and each
    model's as crosses beside them.

    ``truth`` (S, N, 3) holds x, y and the part's number in the image's own pixels, and
    ``predictions`` maps a model's name to points (N, 4) on the network's grid: slice, x, y and the
    part's number; ``note`` says in each model's panel how good they are. Up to three labelled
    slices with the most points are shown, whole.
    """
    counts = np.where(case.labelled, np.isfinite(truth[..., 0]).sum(axis=1), -1)
    slices = sorted(np.argsort(-counts, kind="stable")[: min(MAX_SLICES, (counts >= 0).sum())])
    slices = [index for index in slices if counts[index] > 0] or slices[:1]

    def marks(axes: Axes, index: int, name: str, points: np.ndarray) -> str:
        rows = truth[index][np.isfinite(truth[index]).all(axis=1)]
        rings, crosses = [], []
        for part in range(1, len(parts) + 1):
            mine = points[(points[:, 0] == index) & (points[:, 3] == part)]
            rings.append(rows[rows[:, 2] == part, :2])
            crosses.append(case.grid.points_to_native(mine[:, 1:3]))
            style: dict[str, Any] = {
                "linestyle": "none",
                "color": color_of(part),
                "path_effects": edge(),
            }
            axes.plot(*rings[-1].T, marker="o", fillstyle="none", markersize=7, **style)
            axes.plot(*crosses[-1].T, marker="x", markersize=5, markeredgewidth=1.4, **style)
        if not name:
            return "truth"
        mm = np.array(case.native_spacing_mm[:0:-1])
        return f"{name}\n{note([r * mm for r in rings], [c * mm for c in crosses])}"

    nothing = np.zeros((0, 4))
    shown = {"": nothing, **predictions}
    panels = [partial(marks, name=name, points=points) for name, points in shown.items()]
    rows, columns = case.grid.shape
    view = (slice(0, rows), slice(0, columns))
    return draw_panels(case, slices, view, panels, parts, path, site=site)
