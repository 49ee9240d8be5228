"""Masks over an image, as contours: what a model finds beside the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import binary_fill_holes

from fedshift.client.panels import MAX_SLICES, color_of, draw_panels, edge
from fedshift.sites.types import IGNORED, Case

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Note = Callable[[np.ndarray, np.ndarray, Iterable[int]], str]
"""What is said of a slice: its true and its found label (H0, W0), and the structures that the label
tells of, by number, in words."""


def draw_masks(
    case: Case,
    predictions: Mapping[str, np.ndarray],
    structures: Sequence[str],
    path: Path,
    *,
    site: str,
    note: Note,
) -> Path:
    """Draw one PNG of ``case``: a row a slice; the image, the truth, and each model's contours.

    ``predictions`` maps a model's name to labels (S, H0, W0) uint8 on the image's own grid, like
    the case's own label; ``note`` says in each model's panel how good they are. Up to three
    labelled slices are shown: those with the largest structures of which no two are neighbours. The
    view is cropped to the true structures with a margin.
    Raises ``ValueError`` when no slice carries a label.
    """
    if not case.labelled.any():
        raise ValueError(f"case {case.id} carries no label to draw")
    reference = np.asarray(case.labels["mask"].native)
    slices = _representative(reference, case.labelled)
    # Around the truth alone: a model that finds the structure everywhere must not shrink it.
    view = _window(_shown(reference[slices]))
    told = case.annotates or range(1, len(structures) + 1)

    def contours(axes: Axes, index: int, name: str, labels: np.ndarray) -> str:
        found = np.where(reference[index] == IGNORED, 0, labels[index]) if name else labels[index]
        masks = [found[view] == number for number in range(1, len(structures) + 1)]
        for number in _outer_first(masks):
            lines = axes.contour(
                masks[number], levels=[0.5], colors=color_of(number + 1), linewidths=1.4
            )
            lines.set_path_effects(edge())
        return f"{name}\n{note(reference[index], found, told)}" if name else "truth"

    shown = {"": reference, **predictions}
    panels = [partial(contours, name=name, labels=labels) for name, labels in shown.items()]
    return draw_panels(case, slices, view, panels, structures, path, site=site)


def _representative(reference: np.ndarray, labelled: np.ndarray) -> list[int]:
    """Up to three labelled slices: the ones with the most labelled pixels, no two neighbours."""
    area = np.where(labelled, _shown(reference).sum(axis=(1, 2)), -1)
    chosen: list[int] = []
    for index in np.argsort(-area, kind="stable").tolist():
        if len(chosen) == MAX_SLICES or area[index] < 0 or (chosen and area[index] == 0):
            break
        if all(abs(index - other) > 1 for other in chosen):
            chosen.append(index)
    return sorted(chosen)


def _window(masks: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns around every labelled pixel of (n, H0, W0), with a margin of a half."""
    spans = []
    for axis in (1, 2):
        length = masks.shape[axis]
        used = np.flatnonzero(masks.any(axis=(0, 3 - axis)))
        if not used.size:
            used = np.array([0, length - 1])
        margin = max(8, (used[-1] - used[0]) // 2)
        spans.append(slice(int(max(0, used[0] - margin)), int(min(length, used[-1] + margin + 1))))
    return spans[0], spans[1]


def _outer_first(masks: Sequence[np.ndarray]) -> list[int]:
    """The indices of masks that have a border, from the largest outline to the smallest: where a
    structure lies inside another, both have that border, and the inner one must show."""
    drawn = [index for index, mask in enumerate(masks) if mask.any() and not mask.all()]
    return sorted(drawn, key=lambda index: -int(binary_fill_holes(masks[index]).sum()))


def _shown(reference: np.ndarray) -> np.ndarray:
    """Where a structure is, as a mask."""
    return (reference != 0) & (reference != IGNORED)
