"""Radiotherapy structure sets (RTSTRUCT): planar contours, filled on the grid of their image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fedshift.sites.findings import FileFault
from fedshift.sites.legend import Legend
from fedshift.sites.readers.dicom_frames import readable
from fedshift.sites.readers.overlay import ON_GRID, Overlay, some
from fedshift.sites.readers.volume import Volume

SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.481.3",)
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
SAME_PLANE = 0.05
"""Contours nearer to each other than this, in slices, lie on one plane."""
MIDWAY = 0.49
"""Beyond this distance, in slices, a contour belongs to neither of its neighbours."""
LARGEST_PLANE = 2**25


def read_rtstruct(path: Path, dataset: Any, image: Volume, legend: Legend | None) -> Volume:
    """Fill the closed contours on the grid of ``image``: ROINumber is the value, ROIName its name.

    A voxel is inside where its centre is, by the even-odd rule over all contours of one ROI on one
    plane: a contour inside another is a hole (DICOM PS3.3 C.8.8.6), and so is what a contour that
    doubles back on itself leaves out. Contours may lie along any of the image's three axes. One
    off the slices, but less than half a slice away, goes to the nearest slice; of several such
    planes a slice takes the nearest. For ``legend`` see :class:`Overlay`.

    Raises:
        FileFault: the file is damaged, has no closed contour, contours cross the slices or lie
            midway between them, ROIs overlap, or it was drawn on another image.
    """
    with readable(path):
        rois = {int(roi.ROINumber): roi for roi in dataset.StructureSetROISequence}
        if len(rois) < len(dataset.StructureSetROISequence):
            raise ValueError("two ROIs have one number")
        named = {n: str(roi.get("ROIName") or "").strip() for n, roi in rois.items()}
        contours, others, empty = _contours(dataset, named)
        names = {n: named.get(n) or f"ROI {n}" for n in contours}
        frames = {n: str(roi.get("ReferencedFrameOfReferenceUID") or "") for n, roi in rois.items()}
        whole, series = _references(dataset)
    if not names:
        raise FileFault(
            "no-contours", path, "holds no closed contour", "export it with its contours"
        )
    overlay = Overlay(path, image, names, legend)
    wanted = overlay.ordered()
    own = {frames[n] for n in wanted if frames.get(n)}
    overlay.check_frame(own or whole, series)
    if others:
        overlay.remark(
            "open-contours",
            f"holds what is not drawn, because it is no closed contour: {some(others)}",
            "close it if it is meant",
        )
    placed = {n: [_voxels(overlay, contour) for contour in contours[n]] for n in wanted}
    axis = _axis([contour for those in placed.values() for contour in those])
    notes = _Notes()
    for number in wanted:
        slices = _slices(path, names[number], placed[number], axis, notes)
        drawn = 0
        for slice_, those in slices.items():
            pixels = _combined(path, names[number], those, notes)
            drawn += len(pixels)
            overlay.draw(number, np.insert(pixels, axis, slice_, axis=1), axis)
        if not drawn:
            notes.empty.append(names[number])
    notes.tell(overlay, axis)
    volume = overlay.finish()
    # What is listed without any contour is a name of the file, too.
    listed = {**volume.names, **{n: named[n] or f"ROI {n}" for n in empty}}
    return replace(volume, names=dict(sorted(listed.items())))


def fill(contour: np.ndarray) -> np.ndarray:
    """The whole-number points (M, 2) inside a closed contour (N, 2), by the even-odd rule.

    A point on the contour is inside where the area lies on its side of rising coordinates, and
    outside where it lies on the other: contours that share an edge share no point.
    """
    # Each edge from its lower end to its upper: one that is retraced meets a row at one place.
    ends = np.stack([contour, np.roll(contour, -1, axis=0)])
    swapped = ends[0, :, 1] > ends[1, :, 1]
    low, high = np.where(swapped[:, None], ends[::-1], ends)
    first, stop = np.ceil(low[:, 1]).astype(np.int64), np.ceil(high[:, 1]).astype(np.int64)
    edge = np.repeat(np.arange(len(contour)), stop - first)
    if not len(edge):
        return np.zeros((0, 2), np.int64)
    starts = np.cumsum(stop - first) - (stop - first)
    row = first[edge] + np.arange(len(edge)) - starts[edge]
    slope = (high - low)[edge]
    meets = low[edge, 0] + (row - low[edge, 1]) * slope[:, 0] / slope[:, 1]
    # Rounding must not decide which side of a meeting a point lies on that it should hit.
    column = np.ceil(np.round(meets, 6)).astype(np.int64)
    corner = np.array([column.min(), row.min()])
    crossings = np.zeros((row.max() - corner[1] + 1, column.max() - corner[0] + 1), np.int32)
    np.add.at(crossings, (row - corner[1], column - corner[0]), 1)
    rows, columns = np.nonzero(np.cumsum(crossings, axis=1) & 1)
    return np.stack([columns, rows], axis=1) + corner


@dataclass
class _Notes:
    """What is told of the contours once all are drawn; ``off`` in slices."""

    off: list[float] = field(default_factory=list)
    between: int = 0
    twice: int = 0
    crossing: int = 0
    empty: list[str] = field(default_factory=list)

    def tell(self, overlay: Overlay, axis: int) -> None:
        if self.off:
            mm = float(np.linalg.norm(np.asarray(overlay.image.affine)[:3, axis])) * max(self.off)
            overlay.remark(
                "contours-off-slices",
                f"has contours on {len(self.off)} planes beside its image's slices, up to "
                f"{mm:.3g} mm; each was drawn on the nearest slice",
                "check that it was drawn on this image",
            )
        if self.between:
            overlay.remark(
                "contours-between",
                f"has {self.between} contours between its image's slices, which were not drawn: "
                "others lie nearer to each slice, or two slices are equally near",
                "check that it was drawn on this image",
            )
        if self.twice:
            overlay.remark(
                "contours-twice",
                f"holds {self.twice} contours twice, which were drawn once",
                "export it again if holes are meant",
            )
        if self.crossing:
            overlay.remark(
                "contours-cross",
                f"has {self.crossing} pairs of contours of one ROI that cross; what both hold is "
                "a hole by the even-odd rule",
                "join them where they are drawn if it is not",
            )
        if self.empty:
            overlay.remark(
                "contours-small",
                f"has ROIs too small to hold the centre of a voxel: {some(self.empty)}",
                "leave them out of data.labels, or use an image of finer pixels",
            )


def _contours(
    dataset: Any, names: Mapping[int, str]
) -> tuple[dict[int, list[np.ndarray]], list[str], list[int]]:
    """The closed contours (N, 3) in DICOM's mm by ROI, in words what is not one, and the ROIs
    without any contour."""
    closed: dict[int, list[np.ndarray]] = {}
    others: dict[str, None] = {}
    drawn = set()
    for roi in dataset.get("ROIContourSequence") or ():
        number = int(roi.ReferencedROINumber)
        name = names.get(number, f"ROI {number}")
        for contour in roi.get("ContourSequence") or ():
            drawn.add(number)
            kind = str(contour.ContourGeometricType)
            points = _numbers(contour).reshape(-1, 3)
            if not np.isfinite(points).all():
                raise ValueError(f"a contour of {name!r} is not finite")
            if kind in CLOSED and len(points) > 2:
                closed.setdefault(number, []).append(points)
            else:
                others[f"{name!r} ({kind}, {len(points)} points)"] = None
    return closed, list(others), [number for number in names if number not in drawn]


def _numbers(contour: Any) -> np.ndarray:
    # The raw text: pydicom makes an object of every number, of which there are millions.
    raw = contour.get_item("ContourData").value
    if isinstance(raw, bytes):
        return np.array(raw.rstrip(b" \0").split(b"\\")).astype(float)
    return np.array(raw, float)


def _references(dataset: Any) -> tuple[set[str], set[str]]:
    """The UIDs of the frames of reference and of the series that the set says it was drawn in."""
    frames = list(dataset.get("ReferencedFrameOfReferenceSequence") or ())
    series = {
        str(series.get("SeriesInstanceUID") or "")
        for frame in frames
        for study in frame.get("RTReferencedStudySequence") or ()
        for series in study.get("RTReferencedSeriesSequence") or ()
    }
    return {str(item.get("FrameOfReferenceUID") or "") for item in [dataset, *frames]}, series


def _voxels(overlay: Overlay, contour: np.ndarray) -> np.ndarray:
    """A contour's points (N, 3) in voxels of the image, to a thousandth.

    Planning systems write hundredths of a mm; finer digits are the noise of the change of axes,
    and would decide at random on which side of a contour a voxel's centre lies that is on it.
    """
    points = np.concatenate([contour, np.ones((len(contour), 1))], axis=1).T
    return np.round(overlay.to_voxels(points)[:3].T, 3)


def _axis(contours: Sequence[np.ndarray]) -> int:
    """The axis of the image that most contours stand upright on; the last on a tie."""
    if not contours:
        return 2
    extents = np.median([np.ptp(contour, axis=0) for contour in contours], axis=0)
    return 2 - int(np.argmin(extents[::-1]))


def _slices(
    path: Path, name: str, contours: Sequence[np.ndarray], axis: int, notes: _Notes
) -> dict[int, list[np.ndarray]]:
    """The contours (N, 2) of one ROI by the slice that they are drawn on."""
    near: dict[int, list[tuple[float, np.ndarray]]] = defaultdict(list)
    for contour in contours:
        along = contour[:, axis]
        if np.ptp(along) > 0.5:
            raise FileFault(
                "contours-oblique",
                path,
                f"has a contour of {name!r} that runs through {np.ptp(along):.3g} slices of its "
                "image",
                "export it as DICOM SEG or NIfTI on the image's grid",
            )
        level = round(float(along.mean()), 3)
        if abs(level - round(level)) > MIDWAY:
            notes.between += 1
        else:
            near[round(level)].append((level, contour))
    if contours and not near:
        raise FileFault(
            "contours-midway",
            path,
            f"has the contours of {name!r} midway between its image's slices",
            "export it with the image that it was drawn on",
        )
    slices = {}
    for slice_, those in sorted(near.items()):
        plane = min((abs(level - slice_), level) for level, _ in those)[1]
        kept = [contour for level, contour in those if abs(level - plane) <= SAME_PLANE]
        notes.between += len(those) - len(kept)
        off = max(float(np.abs(contour[:, axis] - slice_).max()) for contour in kept)
        if off > ON_GRID:
            notes.off.append(off)
        slices[slice_] = [np.delete(contour, axis, axis=1) for contour in kept]
    return slices


def _combined(path: Path, name: str, contours: Sequence[np.ndarray], notes: _Notes) -> np.ndarray:
    """The points (M, 2) that lie in an odd number of the contours of one plane."""
    different = {np.unique(contour, axis=0).tobytes(): contour for contour in contours}
    notes.twice += len(contours) - len(different)
    low = np.floor(np.min([contour.min(axis=0) for contour in contours], axis=0))
    width, height = np.ceil(np.max([contour.max(axis=0) for contour in contours], axis=0)) - low + 1
    if width * height > LARGEST_PLANE:
        raise FileFault(
            "label-mostly-outside",
            path,
            f"has contours of {name!r} that span {width:.3g} x {height:.3g} pixels of its image",
            "give the label that was drawn on it",
        )
    # One number a point, which sets can be made of.
    corner, row = low.astype(np.int64), int(width)
    parts = [(fill(contour) - corner) @ [1, row] for contour in different.values()]
    for one, other in combinations(parts, 2):
        shared = len(np.intersect1d(one, other, assume_unique=True))
        notes.crossing += 0 < shared < min(len(one), len(other))
    points, times = np.unique(np.concatenate(parts), return_counts=True)
    odd = points[times % 2 == 1]
    return np.stack([odd % row, odd // row], axis=1) + corner
