"""What DRAI's generator is conditioned on: which structures a slice shows, and of what size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from fedshift.client.methods.drai.dual_inference import Batch
from fedshift.client.slices import Slices, in_turn, permuted
from fedshift.sites.types import SiteData

BATCH = 32
"""Slices a forward pass where nothing is trained; it bounds memory."""


class ConditionedSlices:
    """All slices of a site's training split, and the conditions of those whose label tells of every
    structure and pixel."""

    def __init__(self, site: SiteData, bins: int, largest: float) -> None:
        self._images = Slices(site.splits["train"])
        length = (bins + 1) * len(site.parts)
        conditions: list[np.ndarray] = []
        for case in site.splits["train"]:
            complete = case.annotates is None and not case.ignores
            for index, labelled in enumerate(case.labelled):
                if labelled and complete and "mask" in case.labels:
                    label = np.asarray(case.labels["mask"].grid[index])
                    conditions.append(condition(label, len(site.parts), bins, largest))
                else:
                    conditions.append(np.full(length, np.nan, np.float32))
        self._conditions = np.stack(conditions)
        self._known = np.isfinite(self._conditions[:, 0])

    def __len__(self) -> int:
        return len(self._images)

    @property
    def conditioned(self) -> bool:
        """Whether any slice has a condition."""
        return bool(self._known.any())

    def batches(self, size: int, steps: int, seed: int, device: torch.device) -> Iterator[Batch]:
        """Yield ``steps`` batches of ``size`` slices, or all of them where that is fewer."""
        for chosen in permuted(len(self), size, steps, seed):
            yield self._batch(chosen, device)

    def once(self, device: torch.device) -> Iterator[Batch]:
        """Every slice once, in order, up to :data:`BATCH` at a time."""
        for chosen in in_turn(len(self), BATCH):
            yield self._batch(chosen, device)

    def _batch(self, chosen: Iterable[int], device: torch.device) -> Batch:
        rows = list(chosen)
        conditions = torch.from_numpy(self._conditions[rows])
        known = torch.from_numpy(np.flatnonzero(self._known[rows]))
        return Batch(self._images.stack(rows).to(device), conditions.to(device), known.to(device))


def condition(label: np.ndarray, structures: int, bins: int, largest: float) -> np.ndarray:
    """The condition t of a slice's ``label`` (H, W): for each structure a one-hot vector of
    ``bins + 1``, in one (structures * (bins + 1),) float32.

    The first says that the structure is absent, the others in which of ``bins`` equal parts of 0
    to ``largest`` its size lies; larger ones are in the last. Its size is the square root of its
    share of the pixels.
    """
    areas = np.bincount(label.ravel(), minlength=structures + 1)[1 : structures + 1]
    sizes = np.sqrt(areas / label.size)
    part = np.minimum((sizes / largest * bins).astype(int), bins - 1)
    found = np.zeros((structures, bins + 1), np.float32)
    found[np.arange(structures), np.where(areas > 0, part + 1, 0)] = 1
    return found.ravel()
