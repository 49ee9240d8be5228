"""DICOM segmentations: binary, fractional and label map; by highdicom."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedshift.sites.findings import FileFault
from fedshift.sites.legend import Legend
from fedshift.sites.readers.dicom_frames import readable
from fedshift.sites.readers.overlay import ON_GRID, Overlay
from fedshift.sites.readers.volume import Volume

SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage and Label Map Segmentation Storage."""


def read_seg(path: Path, dataset: Any, image: Volume, legend: Legend | None) -> Volume:
    """Lay the segments on the grid of ``image``: SegmentNumber is the value, SegmentLabel its name.

    Each frame is put where its own position, orientation and spacing say, in whatever order the
    frames come; slices without a frame stay 0. Of a fractional segmentation more than half of the
    maximum is inside. For ``legend`` see :class:`Overlay`.

    Raises:
        FileFault: highdicom is not installed, the file is damaged or has no place in space, its
            frames do not lie on the grid of ``image`` (within 0.1 voxels), segments overlap, or it
            was drawn on another image.
    """
    try:
        from highdicom.seg import Segmentation
    except ImportError:
        raise FileFault(
            "needs-highdicom",
            path,
            "is a DICOM segmentation, which highdicom reads",
            "pip install 'fedshift[dicom]'",
        ) from None
    with readable(path):
        _fill_thickness(dataset)
        seg = Segmentation.from_dataset(dataset, copy=False)
        kind = str(seg.SegmentationType)
        names = {
            int(segment.SegmentNumber): str(segment.get("SegmentLabel") or "").strip()
            or f"segment {segment.SegmentNumber}"
            for segment in seg.SegmentSequence
        }
        half = int(seg.MaximumFractionalValue) / 2 if kind == "FRACTIONAL" else 0
        frames = [_frame(path, seg, index, kind) for index in range(seg.number_of_frames)]
        size = int(seg.Rows), int(seg.Columns)
        frame_uid, series = str(seg.get("FrameOfReferenceUID") or ""), _series(seg)
    if kind == "LABELMAP":
        names.pop(0, None)  # it may describe its background
    overlay = Overlay(path, image, names, legend)
    overlay.check_frame({frame_uid}, series)
    if kind == "FRACTIONAL":
        overlay.remark(
            "fractional-label",
            "is a fractional segmentation: more than half of its maximum "
            f"{2 * half:g} counts as inside",
            "export it as binary if another limit is meant",
        )
    places = [_place(path, overlay.to_voxels(matrix), *size) for _, matrix in frames]
    taken: set[tuple[int, bytes]] = set()
    for (number, _), place in zip(frames, places, strict=True):
        if (number, place.tobytes()) in taken:
            raise FileFault(
                "several-frames",
                path,
                f"holds {names.get(number, 'its map')!r} twice at one place, as of several times",
                "export each time as a file of its own",
            )
        taken.add((number, place.tobytes()))
    for number, index, mask in _masks(path, seg, half, [n for n, _ in frames], overlay):
        along_columns, along_rows, origin = places[index]
        rows, columns = np.nonzero(mask)
        voxels = origin + np.outer(columns, along_columns) + np.outer(rows, along_rows)
        overlay.draw(number, voxels, int(np.flatnonzero(along_columns | along_rows == 0)[0]))
    return overlay.finish()


def _fill_thickness(dataset: Any) -> None:
    """Give a slice thickness, unused here, to frames without: highdicom wants one, DICOM does not.

    PS3.3 C.7.6.16.2.1 asks for it only where the file calls itself a volume.
    """
    groups = [
        *dataset.SharedFunctionalGroupsSequence,
        *(dataset.get("PerFrameFunctionalGroupsSequence") or ()),
    ]
    for group in groups:
        for measures in group.get("PixelMeasuresSequence") or ():
            if "SliceThickness" not in measures:
                measures.SliceThickness = 1.0


def _frame(path: Path, seg: Any, index: int, kind: str) -> tuple[int, np.ndarray]:
    """A frame's segment number (0 in a label map), and the matrix (4, 3) to DICOM's mm.

    Its columns are a step along the columns, one along the rows, and the first pixel's centre.
    """
    groups = [seg.PerFrameFunctionalGroupsSequence[index], *seg.SharedFunctionalGroupsSequence]

    def look_up(sequence: str, key: str) -> Any:
        for group in groups:
            for item in group.get(sequence) or ():
                if item.get(key) is not None:
                    return item[key].value
        return None

    position = look_up("PlanePositionSequence", "ImagePositionPatient")
    cosines = look_up("PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = look_up("PixelMeasuresSequence", "PixelSpacing")
    if position is None or cosines is None or spacing is None:
        raise FileFault(
            "drawing-without-place",
            path,
            f"does not say where its frame {index + 1} lies in the patient",
            "export it with plane positions, or as NIfTI",
        )
    matrix = np.zeros((4, 3))
    matrix[:3, 0] = np.array(cosines[:3], float) * float(spacing[1])
    matrix[:3, 1] = np.array(cosines[3:], float) * float(spacing[0])
    matrix[:, 2] = [*(float(mm) for mm in position), 1]
    if not np.isfinite(matrix).all():
        raise ValueError(f"the place of frame {index + 1} is not finite")
    number = look_up("SegmentIdentificationSequence", "ReferencedSegmentNumber")
    if kind == "LABELMAP":
        return 0, matrix
    if number is None:
        raise ValueError(f"frame {index + 1} names no segment")
    return int(number), matrix


def _place(path: Path, matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Round a frame's matrix (4, 3) to voxels to whole ones: (3, 3), a row for each of its columns.

    Raises:
        FileFault: a corner of the frame moves by more than 0.1 voxels.
    """
    exact = matrix[:3].T
    whole = np.rint(exact).astype(np.int64)
    corners = np.array([[c, r, 1] for c in (0, columns - 1) for r in (0, rows - 1)])
    steps = np.abs(whole[:2])
    aligned = (steps.sum(axis=1) == 1).all() and not (steps[0] & steps[1]).any()
    if not aligned or np.abs(corners @ (exact - whole)).max() > ON_GRID:
        raise FileFault(
            "label-grid",
            path,
            "has frames that do not lie on its image's grid",
            "export it on that grid, without resampling",
        )
    return whole


def _masks(
    path: Path, seg: Any, half: float, segment_of: list[int], overlay: Overlay
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Segment number, frame and mask (R, C) of all that is to be drawn, in the order to draw."""
    undescribed = set(segment_of) - set(overlay.names) - {0}
    if seg.SegmentationType == "LABELMAP":
        with readable(path):
            background = int(seg.get("PixelPaddingValue") or 0)
        for index in range(len(segment_of)):
            pixels = _pixels(path, seg, index)
            for value in np.unique(pixels).tolist():
                if value in overlay.names and overlay.wants(value):
                    yield value, index, pixels == value
                elif value not in overlay.names and value not in (0, background):
                    undescribed.add(value)
    if undescribed:
        raise FileFault(
            "damaged",
            path,
            f"uses the segment number {min(undescribed)}, which it does not describe",
            "export it again",
        )
    frames_of: dict[int, list[int]] = {}
    for index, number in enumerate(segment_of):
        frames_of.setdefault(number, []).append(index)
    for number in overlay.ordered():
        for index in frames_of.get(number, ()):
            yield number, index, _pixels(path, seg, index) > half


def _pixels(path: Path, seg: Any, index: int) -> np.ndarray:
    with readable(path, "has pixels that cannot be read"):
        pixels: np.ndarray = seg.get_stored_frame(index, as_index=True)
    return pixels


def _series(seg: Any) -> set[str]:
    """The UIDs of the series that the segmentation says it was drawn on."""
    studies = [seg, *(seg.get("StudiesContainingOtherReferencedInstancesSequence") or ())]
    return {
        str(series.get("SeriesInstanceUID") or "")
        for study in studies
        for series in study.get("ReferencedSeriesSequence") or ()
    }
