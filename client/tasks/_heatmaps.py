"""What the tasks on points have in common: their networks regress heatmaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedshift import UserError
from fedshift.client.contract.task import DenseTask
from fedshift.protocol.settings import setting
from fedshift.sites.types import Case

if TYPE_CHECKING:
    import torch

CELLS = 4
"""Cells a side of the grid in which points are counted, for label shift."""


@dataclass(frozen=True)
class HeatmapTask(DenseTask):
    """A task whose labels are points, (S, N, 3) float32: x, y and the part's number, and whose
    networks predict a heatmap for each part (:mod:`fedshift.client.heatmaps`). ``sigma`` is the
    heatmaps' standard deviation in pixels of the grid."""

    sigma: float = setting(2.0, at_least=0.5)

    @property
    def outputs(self) -> int:
        """The number of parts."""
        return len(self.parts)

    def loss(
        self, raw: torch.Tensor, labels: torch.Tensor, told: torch.Tensor | None = None
    ) -> torch.Tensor:
        from fedshift.client.heatmaps import heatmap_loss

        return heatmap_loss(raw, labels, self.sigma, told)

    def risk(
        self, predicted: torch.Tensor, labels: torch.Tensor, told: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.loss(predicted, labels, told)

    def predictions(self, raw: torch.Tensor) -> torch.Tensor:
        return raw.float()

    def warp(self, labels: torch.Tensor, theta: torch.Tensor, size: torch.Size) -> torch.Tensor:
        from fedshift.client.heatmaps import warp_points

        return warp_points(labels, theta, size)

    def shown(self, case: Case) -> set[int]:
        label = np.asarray(case.labels[self.form].grid)
        known = np.isfinite(label).all(axis=-1)
        return set(label[known][:, 2].astype(int).tolist())

    def distribution(self, cases: Sequence[Case], min_count: int) -> np.ndarray:
        """No background (nan), then how many points of each part lie in each of 4 x 4 cells of the
        grid, row by row, and last outside it: in as many slices as all cases have, by those that
        tell of the part."""
        counts = np.zeros((self.outputs, CELLS * CELLS + 1))
        told, slices = np.zeros(self.outputs), 0
        for case in cases:
            slices += int(case.labelled.sum())
            annotated = case.annotates or range(1, self.outputs + 1)
            told[[number - 1 for number in annotated]] += int(case.labelled.sum())
            label = np.asarray(case.labels[self.form].grid)
            x, y, part = label[np.isfinite(label).all(axis=-1)].T
            height, width = case.image.shape[2:]
            columns = np.floor((x + 0.5) / width * CELLS).astype(int)
            rows = np.floor((y + 0.5) / height * CELLS).astype(int)
            inside = (columns >= 0) & (columns < CELLS) & (rows >= 0) & (rows < CELLS)
            cells = np.where(inside, rows * CELLS + columns, CELLS * CELLS)
            np.add.at(counts, (part.astype(int) - 1, cells), 1.0)
        known = told >= max(min_count, 1)
        scale = np.where(known, slices / np.maximum(told, 1), np.nan)
        return np.concatenate([[np.nan], (counts * scale[:, None]).ravel()])


def check_radius(name: str, radius_mm: float, sizes_mm: Sequence[np.ndarray]) -> None:
    """Raise :class:`fedshift.UserError` where the radius, the task's setting ``name``, reaches from
    the centre of one of the images of these sizes to its corners: then a guess at the centre would
    be right wherever the point is."""
    least = min((float(np.linalg.norm(size)) / 2 for size in sizes_mm), default=np.inf)
    if radius_mm >= least:
        raise UserError(
            f"task.{name}={radius_mm:g} is in mm and reaches from the centre of an image to its "
            f"corners ({least:.3g} mm), so that any point would match; set a smaller one, or "
            "correct the pixel spacing"
        )


def size_mm(case: Case) -> np.ndarray:
    """How large the image of ``case`` is in mm: in depth, which is 0 of a single slice, by rows and
    by columns."""
    depth = len(case.image) if len(case.image) > 1 else 0
    return np.array([depth, *case.grid.shape]) * case.native_spacing_mm
