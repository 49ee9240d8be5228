"""The slices of a site's cases in batches, read from their (memory-mapped) arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from fedshift.client.contract.step import Batch
from fedshift.client.contract.task import Task
from fedshift.sites.types import Case


class Slices:
    """All slices of ``cases``, with labels or without."""

    def __init__(self, cases: Sequence[Case]) -> None:
        # Plain views of the memory maps: indexing np.memmap itself costs several times more.
        self._slices = [image for case in cases for image in np.asarray(case.image)]

    def __len__(self) -> int:
        return len(self._slices)

    def stack(self, chosen: Iterable[int]) -> torch.Tensor:
        """The slices of these numbers, (N, C, H, W) float32."""
        return torch.from_numpy(np.stack([self._slices[index] for index in chosen]))

    def batches(
        self, size: int, steps: int, seed: int, device: torch.device
    ) -> Iterator[torch.Tensor]:
        """Yield ``steps`` batches (B, C, H, W) on ``device``; B is ``size``, or the number of
        slices where that is fewer."""
        for chosen in permuted(len(self), size, steps, seed):
            yield self.stack(chosen).to(device)

    def once(self, size: int, device: torch.device) -> Iterator[torch.Tensor]:
        """Every slice once, in order, in batches of up to ``size``."""
        for chosen in in_turn(len(self), size):
            yield self.stack(chosen).to(device)


class LabelledSlices:
    """The slices of ``cases`` with a label of the ``task``'s form, read batch by batch from their
    (memory-mapped) arrays."""

    def __init__(self, cases: Sequence[Case], task: Task) -> None:
        self._slices: list[tuple[np.ndarray, np.ndarray]] = []
        told = []
        for case in cases:
            if task.form in case.labels:
                # A plain view of a memory map: indexing np.memmap itself costs several times more.
                image, label = np.asarray(case.image), np.asarray(case.labels[task.form].grid)
                chosen = np.flatnonzero(case.labelled)
                self._slices += [(image[s], label[s]) for s in chosen]
                told += [annotated_row(case, len(task.parts))] * len(chosen)
        complete = all(case.annotates is None and not case.ignores for case in cases)
        self._annotated = (
            None if complete else torch.from_numpy(np.array(told).reshape(-1, 1 + len(task.parts)))
        )

    def __len__(self) -> int:
        return len(self._slices)

    def batches(self, size: int, steps: int, seed: int, device: torch.device) -> Iterator[Batch]:
        """Yield ``steps`` batches on ``device``. With fewer slices than ``size``, B is the number
        of slices."""
        shape = self._slices[0][0].shape
        # Of forms that list what varies in number, sites may pad their lists to different lengths.
        lengths = [label.shape for _, label in self._slices]
        label_shape = tuple(map(max, zip(*lengths, strict=True)))
        padded = any(length != label_shape for length in lengths)
        label_type = torch.from_numpy(np.empty(0, self._slices[0][1].dtype)).dtype
        for chosen in permuted(len(self), size, steps, seed):
            count = len(chosen)
            # Fresh tensors: page-locked ones may still be on their way to the GPU. PyTorch's
            # allocator hands the memory back when the copy is done.
            pinned = device.type == "cuda"
            images = torch.empty(count, *shape, pin_memory=pinned)
            labels = torch.empty(count, *label_shape, dtype=label_type, pin_memory=pinned)
            image_rows, label_rows = images.numpy(), labels.numpy()
            if padded:
                label_rows.fill(np.nan)
            for row, index in enumerate(chosen):
                image_rows[row], label = self._slices[index]
                own: tuple[int | slice, ...] = (row, *map(slice, label.shape))
                label_rows[own] = label
            annotated = None if self._annotated is None else self._annotated[chosen].to(device)
            yield Batch(
                images.to(device, non_blocking=True),
                labels.to(device, non_blocking=True),
                annotated,
            )


def fewest_subjects(counts: Mapping[str, int], drawn: int) -> int:
    """Of how many subjects, at least, so many different slices are; ``counts`` are theirs."""
    left = min(drawn, sum(counts.values()))
    largest = sorted(counts.values(), reverse=True)
    subjects = 0
    while left > 0:
        left -= largest[subjects]
        subjects += 1
    return subjects


def annotated_row(case: Case, parts: int) -> np.ndarray:
    """Of which of so many ``parts`` the label of ``case`` tells, (1 + parts,) bool; the first place
    is that of no part, and true."""
    row = np.full(1 + parts, case.annotates is None)
    row[[0, *(case.annotates or ())]] = True
    return row


def permuted(total: int, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Yield ``steps`` batches of ``size`` of the indices below ``total``, or all of them where that
    is fewer: one random permutation after another, cut without regard to where one ends, so that
    every index is seen equally often."""
    rng = np.random.default_rng(seed)
    count = min(size, total)
    queue: list[int] = []
    for _ in range(steps):
        while len(queue) < count:
            queue += rng.permutation(total).tolist()
        chosen, queue = queue[:count], queue[count:]
        yield chosen


def in_turn(total: int, size: int) -> Iterator[range]:
    """The indices below ``total`` in order, ``size`` at a time."""
    for start in range(0, total, size):
        yield range(start, min(start + size, total))
