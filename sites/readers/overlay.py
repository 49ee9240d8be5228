"""Structures drawn one by one (DICOM SEG, RTSTRUCT), laid together on the grid of their image.

A file of this kind may hold structures that overlap, lie in any order and leave empty slices out,
while a label image has one value a voxel and the shape of its image.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from fedshift.sites.findings import FileFault, Remark
from fedshift.sites.legend import Legend
from fedshift.sites.readers.volume import Volume

ON_GRID = 0.1
"""How far, in voxels, a position may lie off the image's grid and still count as on it."""
LARGEST = 65535
DICOM_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's patient axes point left and back; ours point right and front."""


class Overlay:
    """A label image in the making, on the grid of ``image``.

    ``names`` are all structures that the file defines, by number. With a ``legend`` only those in
    it are drawn; what is background gives way to the rest, and structures of one class may overlap.
    Without it every structure counts for itself.

    Raises:
        FileFault: the image has no place in space, or a number cannot be a label's value.
    """

    def __init__(
        self,
        path: Path,
        image: Volume,
        names: Mapping[int, str],
        legend: Legend | None,
    ) -> None:
        if image.affine is None or image.assumed:
            raise FileFault(
                "image-without-place",
                path,
                "is drawn in the patient's coordinates, and its image has no place in space",
                "give the image as DICOM or as NIfTI with an orientation, or the label as an image",
            )
        self.path, self.image, self.names = path, image, names
        self._of_ras = np.linalg.inv(image.affine)
        self._array = np.zeros(image.array.shape, np.uint16)
        self._class = None if legend is None else legend.classes(names)
        self._remarks: dict[str, Remark] = {}
        self._slices: dict[int, set[int]] = {}
        self._drawn = self._outside = 0
        self._farthest = 0.0
        undrawable = [n for n in names if self.wants(n) and not 0 < n <= LARGEST]
        if undrawable:
            raise FileFault(
                "label-number",
                path,
                f"gives {self._called(undrawable[0])} a number that no label can have",
                f"number its structures from 1 to {LARGEST}, or leave it out of data.labels",
            )
        left_out = [n for n in names if not self.wants(n)]
        if left_out:
            self.remark(
                "structures-left-out",
                f"{some([self._called(n) for n in left_out])} stand in no structure and are not "
                "drawn",
                "give them to one in data.labels or label_values if they are meant",
            )

    def wants(self, number: int) -> bool:
        """Whether the structure ``number`` is to be drawn."""
        # A label without a structure is 0, so that a structure of that number cannot be drawn.
        return self._class is None or (number != 0 and number in self._class)

    def ordered(self) -> list[int]:
        """The numbers to draw, in the order to draw them: background first."""
        return sorted(filter(self.wants, self.names), key=lambda n: (self._of(n) != 0, n))

    def to_voxels(self, frame: np.ndarray) -> np.ndarray:
        """Turn a matrix (4, N) to DICOM's mm (left, back, up) into one to voxels of the image."""
        return self._of_ras @ DICOM_TO_RAS @ frame

    def check_frame(self, frames: Collection[str], series: Collection[str]) -> None:
        """Compare the UIDs that the label gives with its image's, as far as both say any.

        Raises:
            FileFault: they lie in different frames of reference; or say none, and the label was
                drawn on another series.
        """
        image = self.image
        frames, series = set(filter(None, frames)), set(filter(None, series))
        if image.frame and frames and frames != {image.frame}:
            other = min(frames - {image.frame})
            raise FileFault(
                "other-frame",
                self.path,
                f"lies in the frame of reference {other}, its image in {image.frame}",
                "give the label that was drawn on this image",
            )
        if not image.series or not series or image.series in series:
            return
        problem = f"was drawn on the series {some(sorted(series))}, its image is {image.series}"
        if not (image.frame and frames):
            raise FileFault(
                "other-series", self.path, problem, "give the label that was drawn on this image"
            )
        self.remark(
            "drawn-on-other-series",
            f"{problem}, in one frame of reference",
            "check that both lie alike",
        )

    def draw(self, number: int, voxels: np.ndarray, axis: int) -> None:
        """Give voxels (N, 3) of one plane, which may lie outside the grid, to ``number``.

        ``axis`` is the one of the image that the plane stands on.

        Raises:
            FileFault: some of them belong to a structure of another class.
        """
        last = np.subtract(self._array.shape, 1)
        beyond = np.maximum(-voxels, voxels - last).clip(0)
        outside = beyond.any(axis=1)
        self._drawn += len(voxels)
        self._slices.setdefault(number, set()).update(voxels[:1, axis].tolist())
        if outside.any():
            self._outside += int(outside.sum())
            steps = np.linalg.norm(np.asarray(self.image.affine)[:3, :3], axis=0)
            self._farthest = max(self._farthest, float((beyond * steps).max()))
            voxels = voxels[~outside]
        place = tuple(voxels.T)
        present = self._array[place]
        for other in np.unique(present[(present != 0) & (present != number)]).tolist():
            if self._of(other) not in (0, self._of(number)):
                self._overlap(other, number, int((present == other).sum()))
        self._array[place] = number

    def remark(self, code: str, problem: str, way_out: str) -> None:
        """Note what the user should know; a code is told once."""
        self._remarks.setdefault(code, Remark(code, problem, way_out))

    def finish(self) -> Volume:
        """The label, on the image's grid.

        Raises:
            FileFault: most of it lies outside.
        """
        if self._outside:
            problem = (
                f"lies outside its image with {self._outside / self._drawn:.1%} of its voxels, up "
                f"to {self._farthest:.4g} mm away"
            )
            if 2 * self._outside > self._drawn:
                raise FileFault(
                    "label-mostly-outside",
                    self.path,
                    problem,
                    "give the label that was drawn on it",
                )
            self.remark(
                "label-outside", problem, "check that both are of one scan: the rest is used"
            )
        sparse = [n for n, slices in self._slices.items() if _sparse(slices)]
        if sparse:
            self.remark(
                "slices-skipped",
                f"skips slices of its image: {some([self._called(n) for n in sparse])} lie on no "
                "two neighbours, and what lies between is not labelled",
                "interpolate them where they were drawn",
            )
        return replace(
            self.image,
            array=self._array,
            names=dict(sorted(self.names.items())),
            remarks=tuple(self._remarks.values()),
        )

    def _of(self, number: int) -> int:
        return number if self._class is None else self._class[number]

    def _called(self, number: int) -> str:
        return f"{self.names[number]!r} ({number})"

    def _overlap(self, one: int, other: int, voxels: int) -> NoReturn:
        first, second = sorted((one, other))
        raise FileFault(
            "overlap",
            self.path,
            f"has structures that overlap: {self._called(first)} and {self._called(second)} share "
            f"at least {voxels} voxels",
            "name only one of them, or both as one structure, in data.labels",
        )


def _sparse(slices: set[int]) -> bool:
    """Whether a structure was drawn on every other slice, or fewer."""
    return len(slices) > 2 and int(np.diff(sorted(slices)).min()) > 1


def some(texts: list[str]) -> str:
    """The first three, and how many more."""
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return ", ".join(texts[:3]) + more
